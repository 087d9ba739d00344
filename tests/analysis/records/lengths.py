"""Records of answers with the lengths of prompts and completions: the long ones are wrong."""


def records(make):
    return [answers(make, "full", {}, 1.0), answers(make, "topk", {"k": 0.25}, 0.25)]


def answers(make, method, args, density, count=30):
    samples = [
        {"repeat": i, "length": 256, "depth": 0.5, "prompt_tokens": 100 + 10 * i, "completion_tokens": 5 + i % 3,
         "score": float(i < 20)}
        for i in range(count)
    ]  # fmt: skip
    return make.record(
        make.cell(method, args, "needle", {"length": 256, "kind": "words"}), {"accuracy": 2 / 3}, samples, density
    )
