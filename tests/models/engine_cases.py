"""Methods whose steps at fixed places are held against the ordinary path."""

ONCE = [  # cut at the end of the prompt; then the cache grows
    ("snapkv", {"rows": 9, "window": 4, "kernel": 3}),
    ("snapkv", {"keep": 0.25, "window": 4, "kernel": 3, "heads": "query"}),
    ("snapkv", {"rows": (9, 40), "window": 4, "kernel": 3, "heads": "query"}),
    ("snapkv", {"bytes": 1600, "window": 4, "kernel": 3}),
    ("snapkv", {"rows": 64, "window": 4, "kernel": 3}),
    ("pyramidkv", {"rows": 12, "window": 4, "kernel": 3}),
    ("pyramidkv", {"keep": 0.4, "window": 4, "kernel": 3, "heads": "query"}),
    ("pyramidkv", {"rows": 12, "window": 4, "kernel": 3, "budget_rule": "released"}),
    ("pyramidkv", {"bytes": 1600, "window": 4, "kernel": 3}),
    ("adakv", {"rows": 9, "window": 4, "kernel": 3}),
    ("adakv", {"keep": 0.4, "window": 4, "kernel": 3, "floor": 0.0}),
    ("adakv", {"rows": 9, "window": 4, "kernel": 3, "heads": "query"}),
    ("keydiff", {"rows": 9}),
    ("keydiff", {"keep": (0.25, 1.0)}),
    ("l2norm", {"keep": 0.25, "skip": 1}),
    ("l2norm", {"rows": 9, "skip": 0}),
    ("l2norm", {"bytes": 1600, "skip": 1}),
    ("h2o", {"keep": (0.25, 0.6), "evict": "once"}),
    ("h2o", {"bytes": 2000, "recent": 3, "evict": "once"}),
]
