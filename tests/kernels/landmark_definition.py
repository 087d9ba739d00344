"""Landmark attention written down a second time, key by key, after section 3.2 of the paper (arXiv 2305.16300).

Shape legend: B batch, H query heads, G KV heads, T query rows, S key rows, D head dim.
"""

import torch


def weights_of(score, place, block):
    """Weights of the keys at places 0 to `place` of a document, for the query at `place`."""
    landmark = [j // block * block + block - 1 for j in range(place + 1)]
    groups = {}
    for j in range(place + 1):
        if j != landmark[place]:
            groups.setdefault(landmark[place] if j == landmark[j] else landmark[j], []).append(j)
    local = torch.zeros_like(score)
    for members in groups.values():
        local[members] = score[members].softmax(-1)
    weight = torch.zeros_like(score)
    for j in range(place + 1):
        if j != landmark[j]:
            weight[j] = local[j] if landmark[j] == landmark[place] else local[j] * local[landmark[j]]
    return weight


def landmark_attention(q_BHTD, k_BGSD, v_BGSD, block, scale, start_BS=None):
    """The definition, in float64 on the CPU, differentiable; also the weights, which must sum to one."""
    q, k, v = (part.double().cpu() for part in (q_BHTD, k_BGSD, v_BGSD))
    out, total = torch.zeros_like(q), torch.ones(q.shape[:3], dtype=torch.float64)
    rows, new, group = k.shape[2], q.shape[2], q.shape[1] // k.shape[1]
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        row = rows - new + t
        start = 0 if start_BS is None else int(start_BS[b, row])
        if row >= start:
            seen = slice(start, row + 1)
            weight = weights_of(k[b, h // group, seen] @ q[b, h, t] * scale, row - start, block)
            out[b, h, t], total[b, h, t] = weight @ v[b, h // group, seen], weight.sum()
    return out, total
