"""The box around the keys of the page being written, in plain torch.

Shape legend: B batch, G KV heads, S rows in the cache, D head dim, P pages, W = 2 D sides of a box.
"""

import torch


def grow_box(
    keys_BGSD: torch.Tensor, row_B: torch.Tensor, first_B: torch.Tensor, boxes_BGPW: torch.Tensor, page: int
) -> torch.Tensor:
    """Let the box of a row's page hold that row; the row that begins a page is its whole box.

    A box is the largest, then the smallest component of its keys, as Quest has it (arXiv 2406.10774).

    Args:
        keys_BGSD: (B, G, S, D) keys.
        row_B: (B,) integers, the row of each text that was written.
        first_B: (B,) integers, the first row of each text, from which pages count; none is beyond `row_B`.
        boxes_BGPW: (B, G, P, W) boxes of the dtype of the keys, written.
        page: Rows of a page.

    Returns:
        The boxes.
    """
    batch, heads, _, dim = keys_BGSD.shape
    place_B = row_B - first_B
    at_B111 = row_B.long()[:, None, None, None]
    own_B111 = (place_B // page).long()[:, None, None, None]
    key_BG1D = keys_BGSD.gather(2, at_B111.expand(batch, heads, 1, dim))
    own_BG1W = own_B111.expand(batch, heads, 1, 2 * dim)
    top_BG1D, bottom_BG1D = boxes_BGPW.gather(2, own_BG1W).chunk(2, -1)
    grown_BG1W = torch.cat([key_BG1D.maximum(top_BG1D), key_BG1D.minimum(bottom_BG1D)], -1)
    begins_B111 = (place_B % page == 0)[:, None, None, None]
    boxes_BGPW.scatter_(2, own_BG1W, torch.where(begins_B111, key_BG1D.repeat(1, 1, 1, 2), grown_BG1W))
    return boxes_BGPW
