"""Records of the task `train`."""


def records(make):
    return [one(make, 0), one(make, 1)]


def one(make, seed):
    curve = [
        {"step": n, "tokens": 1e6 * n, "length": 512 if n < 6 else 2048, "loss": 8 / n, "text_loss": 9 / n,
         "rate": 1.0, "tok_s": 2e6 if n < 6 else 1.5e6}
        for n in range(1, 11)
    ]  # fmt: skip
    cell = make.cell("full", {}, "train", {"attention": "standard"}, seed=seed)
    return make.record(cell, {"heldout_perplexity": 20.0, "tok_s_512": 2e6}, curve, 1.0)
