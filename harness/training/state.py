"""Where a run stands, in one safetensors file: a run that was killed goes on from it, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...results.store import write_atomically

NAME = "state.safetensors"


@dataclass(frozen=True)
class State:
    """A run after `step` steps.

    Attributes:
        run: what tells runs apart: the key of the cell.
        tensors: weights (`model.*`) and the optimiser's.
        curve: what was noted so far.
    """

    run: str
    step: int
    tensors: Mapping[str, Tensor]
    curve: list[dict[str, Any]]

    def write(self, folder: Path) -> None:
        """Replace the state before; whoever dies meanwhile leaves that one."""
        about = {"run": self.run, "step": str(self.step), "curve": json.dumps(self.curve)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        write_atomically(folder / NAME, save(tensors, about))

    @classmethod
    def read(cls, folder: Path, run: str) -> State | None:
        """The state that an earlier try left, if there is one.

        Raises:
            ValueError: it is another run's, or damaged.
        """
        path = folder / NAME
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): delete it to begin anew") from error
        if about.get("run") != run:
            raise ValueError(f"{path} is of another run ({about.get('run')}, this is {run}): it is left as it is")
        return cls(run, int(about["step"]), tensors, json.loads(about["curve"]))
