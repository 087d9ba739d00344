"""A few rows turned by rotary angles and written over rows of a cache, in plain torch.

Shape legend: B batch, G KV heads, E rows, S rows in the cache, D head dim, R turned dims.
"""

import torch

from ..turn_rows.eager import turn_rows


def put_turned(
    x_BGED: torch.Tensor,
    cos_BER: torch.Tensor,
    sin_BER: torch.Tensor,
    place_BE: torch.Tensor,
    cache_BGSD: torch.Tensor,
) -> torch.Tensor:
    """Turn each row by its angle, as `turn_rows` does, and write it where it belongs.

    Args:
        x_BGED: (B, G, E, D) rows.
        cos_BER: (B, E, R) cosines, both halves alike, the same for all heads.
        sin_BER: (B, E, R) sines, both halves alike.
        place_BE: (B, E) int64, the row of the cache that each is written over; -1: it is not. But for that, no two of a
            text are equal.
        cache_BGSD: (B, G, S, D), written; in the dtype of x.

    Returns:
        The cache.

    Raises:
        ValueError: If angles or places are for other rows, or the cache has another form.
    """
    check_rows(x_BGED, cos_BER, sin_BER, place_BE, cache_BGSD)
    turned_BEGD = turn_rows(x_BGED, cos_BER.flatten(0, 1), sin_BER.flatten(0, 1))[:, :, :, 0].transpose(1, 2)
    text, row = (place_BE >= 0).nonzero(as_tuple=True)
    cache_BGSD[text, :, place_BE[text, row]] = turned_BEGD[text, row]
    return cache_BGSD


def check_rows(
    x_BGED: torch.Tensor,
    cos_BER: torch.Tensor,
    sin_BER: torch.Tensor,
    place_BE: torch.Tensor,
    cache_BGSD: torch.Tensor,
) -> None:
    """Refuse what belongs to other rows.

    Args:
        x_BGED: (B, G, E, D) rows.
        cos_BER: (B, E, R) cosines.
        sin_BER: (B, E, R) sines.
        place_BE: (B, E) places.
        cache_BGSD: (B, G, S, D) cache.

    Raises:
        ValueError: As `put_turned`.
    """
    batch, heads, rows, dim = x_BGED.shape
    width = cos_BER.shape[-1]
    if cos_BER.shape != sin_BER.shape or width % 2 or width > dim:
        raise ValueError(f"expected cosines and sines of an even width up to {dim}, got {tuple(cos_BER.shape)}")
    if not cos_BER.shape[:-1] == place_BE.shape == (batch, rows):
        raise ValueError(
            f"expected an angle and a place for each of {batch} x {rows} rows, got {tuple(cos_BER.shape[:-1])} and "
            f"{tuple(place_BE.shape)}"
        )
    if (*cache_BGSD.shape[:2], cache_BGSD.shape[3]) != (batch, heads, dim) or cache_BGSD.dtype != x_BGED.dtype:
        raise ValueError(f"expected a cache of rows like {tuple(x_BGED.shape)}, got {tuple(cache_BGSD.shape)}")
