"""One token of each text turned, projected and written into preallocated caches, in plain torch.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, D head dim, R leading columns (none
where nothing is projected), Q = D - R, W columns of keys that are kept once more, C columns of sums: D or none.
"""

import torch

from ..rotate_rows.eager import rotate_rows


def append_row(
    q_BHD: torch.Tensor,
    k_BGD: torch.Tensor,
    v_BGD: torch.Tensor,
    cos_BD: torch.Tensor,
    sin_BD: torch.Tensor,
    lead_GDR: torch.Tensor,
    rest_GDQ: torch.Tensor,
    place_B: torch.Tensor,
    keys_BGSD: torch.Tensor,
    values_BGSD: torch.Tensor,
    leads_BGSW: torch.Tensor,
    sums_BGC: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn queries and keys by their position, bring both into a basis, and write keys and values where they belong.

    What is turned is rounded to its dtype before it is projected, as models round it.

    Args:
        q_BHD: (B, H, D) queries; head h reads KV head h // J.
        k_BGD: (B, G, D) keys.
        v_BGD: (B, G, D) values.
        cos_BD: (B, D) cosines, both halves alike.
        sin_BD: (B, D) sines, both halves alike.
        lead_GDR: (G, D, R) leading columns of the basis; R = 0: keys are kept as they are.
        rest_GDQ: (G, D, D - R) its other columns; of no columns if R is 0.
        place_B: (B,) int64, the row of each text that is written.
        keys_BGSD: (B, G, S, D), written.
        values_BGSD: (B, G, S, D), written.
        leads_BGSW: (B, G, S, W), written: the first W columns of the keys, as they are kept, once more; W may be 0.
        sums_BGC: (B, G, C) float32, to which the values are added; C may be 0.

    Returns:
        (B, H, D) queries in the basis, the three caches, and the sums.
    """
    q_BHD, k_BGD = rotate_rows(q_BHD, k_BGD, cos_BD, sin_BD)
    if lead_GDR.shape[2]:
        wide = torch.promote_types(q_BHD.dtype, torch.float32)
        basis_GDD = torch.cat([lead_GDR, rest_GDQ], -1).to(wide)
        q_BGJD = q_BHD.unflatten(1, (k_BGD.shape[1], -1))
        q_BHD = (q_BGJD.to(wide) @ basis_GDD).to(q_BHD.dtype).flatten(1, 2)
        k_BGD = (k_BGD[:, :, None].to(wide) @ basis_GDD)[:, :, 0].to(k_BGD.dtype)
    for cache, rows in ((keys_BGSD, k_BGD), (values_BGSD, v_BGD), (leads_BGSW, k_BGD[..., : leads_BGSW.shape[3]])):
        place = place_B[:, None, None, None].expand(-1, *cache.shape[1:2], 1, cache.shape[3])
        cache.scatter_(2, place, rows[:, :, None])
    sums_BGC += v_BGD[..., : sums_BGC.shape[2]].to(sums_BGC.dtype)
    return q_BHD, keys_BGSD, values_BGSD, leads_BGSW, sums_BGC
