"""Records of the tasks `kept_rows` and `agreement`."""

METHODS = [
    ("full", {}, 1.0),
    ("topk", {"keep": 0.25}, 0.25),
    ("top_theta", {"k": 8}, 0.3),
    ("streaming_llm", {"window": 8}, 0.2),
]


def records(make):
    return [*(one(make, *method) for method in METHODS), agreement(make)]


def one(make, method, args, density, layers=3):
    factor = 1.5 if method == "top_theta" else 1.0
    lengths = [20.0, 40.0, 60.0]
    kept = [factor * density * n for n in lengths]
    found = []
    for layer in range(layers):
        sample = {"layer": layer, "length": lengths, "kept": kept, "least": [0.5 * k for k in kept], "most": [k + 2 for k in kept],
                  "sets": [kept[1]] * 4, "union": [1.2 * density, 1.4 * density], "kept_share": density, "kept_mean": kept[1],
                  "union_share": 1.3 * density, "popularity": [1.0, 0.2 * layer, 0.1, 0.5]}  # fmt: skip
        asked = {"asked": [density * n for n in lengths], "factors": [factor, factor + 0.2]}
        found.append({**sample, **(asked if method.startswith("top") else {})})
    return make.record(make.cell(method, args, "kept_rows", {"window": 64}), {"effective_k": kept[1]}, found, density)


def agreement(make):
    samples = [
        {"layer": layer, "set": n, "recall": 0.9 - 0.1 * layer, "jaccard": 0.8 - 0.1 * layer, "rows": 10}
        for layer in range(2)
        for n in range(3)
    ]
    del samples[4]
    cell = make.cell("loki", {"k": 0.25}, "agreement", {"window": 64})
    return make.record(cell, {"recall": 0.85, "jaccard": 0.75, "rows": 60.0}, samples, 0.25)
