"""What a method reads of a layer at every step whatever the text, made once for all caches of a binding."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .memory import Site
from .method import Method


@dataclass
class Constants:
    """Tensors by layer: to draw or read them anew for each batch of texts would cost more than to score a short one.

    Attributes:
        method: whose they are; those of another take their place.
        made: of each layer, with the heads, device and dtype that they were made for.
    """

    method: Method | None = None
    made: dict[Hashable, Mapping[str, Tensor]] = field(default_factory=dict)

    def of(self, method: Method, site: Site, like: Tensor) -> Mapping[str, Tensor]:
        """A layer's constants in the dtype of its keys, and its tables in their own, where the keys are.

        Args:
            method: what reads them.
            site: the layer; of what is asked with one binding, only layer and heads differ.
            like: keys.
        """
        if method is not self.method:
            self.method, self.made = method, {}
        place = (site.layer, site.kv_heads, like.device, like.dtype)
        if place not in self.made:
            constants = {name: part.to(like) for name, part in method.constants(site).items()}
            tables = {name: part.to(like.device) for name, part in method.tables(site).items()}
            self.made[place] = constants | tables
        return self.made[place]
