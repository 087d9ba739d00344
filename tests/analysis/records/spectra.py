"""Records of the tasks `spectra` and `basis_similarity`, and of a method calibrated on two corpora."""

CORPORA = ("code", "prose")


def records(make):
    pairs = [similarity(make, mine, other) for mine in CORPORA for other in CORPORA]
    return [*(spectra(make, c, r) for c in CORPORA for r in ("pre", "post")), *pairs, *transfer(make)]


def spectra(make, corpus, rotary, layers=3):
    task = {"pca": {"corpus": corpus, "rotary": rotary}, "variance": 0.9}
    samples = [
        {"layer": i, "rank": [4 + i, 9], "component": [1, 2, 4, 8], "mean": [0.5, 0.2, 0.1, 0.05],
         "least": [0.4, 0.1, 0.05, 0.01], "most": [0.6, 0.3, 0.15, 0.1]}
        for i in range(layers)
    ]  # fmt: skip
    return make.record(make.cell("full", {}, "spectra", task), {"rank_mean": 7.0}, samples)


def similarity(make, mine, other):
    value = 1.0 if mine == other else 0.5
    task = {"pca": {"corpus": mine}, "other": {"corpus": other}, "d": 0.25}
    samples = [{"layer": i, "overlap": [value, value], "variance_held": [value, value]} for i in range(2)]
    return make.record(make.cell("full", {}, "basis_similarity", task), {"overlap_by_chance": 0.25}, samples)


def transfer(make):
    found = []
    for text in CORPORA:
        methods = [("full", {}, 1.0), *(("loki", {"k": 0.25, "basis": {"corpus": c}}, 0.25) for c in CORPORA)]
        for method, args, density in methods:
            made = make.perplexity(method, args, density)
            cell = make.cell(method, args, "perplexity", {"corpus": text})
            found.append(make.record(cell, made.metrics, made.samples, density))
    return found
