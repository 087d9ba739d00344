"""Records of the tasks `attention_maps` and `threshold_curves`."""


def records(make):
    return [maps(make, "full", {}, 1.0), maps(make, "topk", {"k": 2}, 0.4), curves(make)]


def maps(make, method, args, density):
    rows = [2, 3]
    samples = [
        {
            "layer": layer,
            "row": rows,
            "edge": [0, 1, 2, 3, 4],
            "weight": [[0.6, 0.3, 0.1], [0.5, 0.2, 0.2, 0.1]],
            "kept": [[1, 1, 0], [1, 0, 0.5, 0]] if method == "topk" else [[1, 1, 1], [1, 1, 1, 1]],
            "kept_mass": 0.8,
        }
        for layer in (0, 4)
    ]
    return make.record(make.cell(method, args, "attention_maps", {"window": 4}), {"kept_mass": 0.8}, samples, density)


def curves(make):
    samples = [
        {"layer": layer, "signal": "pre", "length": [8, 16], "threshold": [[1.0, 2.0], [3.0, 3.5 + layer]]}
        for layer in range(2)
    ]
    cell = make.cell("full", {}, "threshold_curves", {"calibration": {"k": 4}})
    return make.record(cell, {"layers": 2.0}, samples)
