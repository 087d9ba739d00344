"""Records of the task `output_error`: errors that grow with the layer and the gaps, two windows, two heads."""

METHODS = [("full", {}, 1.0), ("topk", {"k": 0.25}, 0.25), ("topk", {"k": 0.5}, 0.5), ("loki", {"k": 0.25}, 0.25)]


def records(make):
    return [one(make, *method) for method in METHODS]


def one(make, method, args, density, layers=3, **changes):
    errors = [(1 - density) * 0.1 * (layer + 1) for layer in range(layers)]
    samples = [
        {"layer": layer, "error": e, "by_window": [0.9 * e, 1.1 * e], "by_head": [0.8 * e, 1.2 * e]}
        for layer, e in enumerate(errors)
    ]
    task = {"inputs": "dense", "window": 64}
    metrics = {"output_error": sum(errors) / layers, "output_error_max": max(errors)}
    return make.record(make.cell(method, args, "output_error", task, **changes), metrics, samples, density)
