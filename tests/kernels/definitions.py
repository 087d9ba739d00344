"""What the operations mean, written a second time: one sequence and one head after the other, in float64.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R dims, N sets of rows, K kept.
"""

import math

import torch


def attention_of(q_D, k_KD, v_KD, scale):
    if not len(k_KD):
        return v_KD.new_zeros(v_KD.shape[1])
    weight_K = torch.exp(k_KD @ q_D * scale)
    return (weight_K / weight_K.sum()) @ v_KD


def dense_decode(q_BHD, k_BGSD, v_BGSD, lo_B, hi_B, scale):
    q, k, v = (x.double().cpu() for x in (q_BHD, k_BGSD, v_BGSD))
    group = q.shape[1] // k.shape[1]
    return torch.stack([
        torch.stack([
            attention_of(q[b, h], k[b, h // group, lo:hi], v[b, h // group, lo:hi], scale) for h in range(q.shape[1])
        ])
        for b, (lo, hi) in enumerate(zip(lo_B.tolist(), hi_B.tolist(), strict=True))
    ])  # fmt: skip


def gather_decode(q_BHD, k_BGSD, v_BGSD, index_BNK, count_BN, scale):
    q, k, v = (x.double().cpu() for x in (q_BHD, k_BGSD, v_BGSD))
    out = torch.empty_like(q)
    heads, sets, kv_heads = q.shape[1], index_BNK.shape[1], k.shape[1]
    for b in range(q.shape[0]):
        for h in range(heads):
            n, g = h * sets // heads, h * kv_heads // heads
            rows = index_BNK[b, n, : int(count_BN[b, n])].long().cpu()
            out[b, h] = attention_of(q[b, h], k[b, g, rows], v[b, g, rows], scale)
    return out


def lowrank_score(q_BHR, k_BGSR, lo_B, hi_B, reduce):
    q, k = q_BHR.double().cpu(), k_BGSR.double().cpu()
    group = q.shape[1] // k.shape[1]
    sets = q.shape[1] if reduce == "none" else k.shape[1]
    out = torch.full((q.shape[0], sets, k.shape[2]), -math.inf, dtype=torch.float64)
    for b, (lo, hi) in enumerate(zip(lo_B.tolist(), hi_B.tolist(), strict=True)):
        for n in range(sets):
            heads = [n] if reduce == "none" else range(n * group, (n + 1) * group)
            score = torch.stack([k[b, h // group, lo:hi] @ q[b, h] for h in heads])
            out[b, n, lo:hi] = score.max(0).values if reduce == "max" else score.sum(0)
    return out


def select_topk(s_BNS, k_B, width):
    index, count = [], []
    for b, sequence in enumerate(s_BNS.tolist()):
        for scores in sequence:
            able = [row for row, score in enumerate(scores) if score > -math.inf]
            best = sorted(able, key=lambda row: (-scores[row], row))
            chosen = sorted(best[: max(0, min(int(k_B[b]), width))])
            index.append(chosen + [-1] * (width - len(chosen)))
            count.append(len(chosen))
    shape = s_BNS.shape[:2]
    return torch.tensor(index).view(*shape, width), torch.tensor(count).view(shape)


def threshold_compact(s_BNS, threshold_BN, width):
    index, count = [], []
    for sequence, thresholds in zip(s_BNS.tolist(), threshold_BN.tolist(), strict=True):
        for scores, threshold in zip(sequence, thresholds, strict=True):
            chosen = [row for row, score in enumerate(scores) if score >= threshold and score > -math.inf][-width:]
            index.append(chosen + [-1] * (width - len(chosen)))
            count.append(len(chosen))
    shape = s_BNS.shape[:2]
    return torch.tensor(index).view(*shape, width), torch.tensor(count).view(shape)
