"""tokens.py SWEEP DATA STORE: prepares the text of a sweep of one training of a new model, so that its shards can travel.

They lie in STORE/work/tokens, in a folder named by the text and the vocabulary, where the training looks for them.
"""

import sys
import time
from pathlib import Path

from lacuna.harness.ranks import Ranks
from lacuna.harness.training.prepare import EXTRA, Text
from lacuna.harness.world import World
from lacuna.jobs.sweep import read
from lacuna.models.load import read_shape
from lacuna.results.store import Store


def main() -> None:
    """Prepare, say how long it took."""
    sweep, data, store = Path(sys.argv[1]), Path(sys.argv[2]), Store(sys.argv[3])
    cell = read(sweep, store, data=data).cells[0]
    args = cell.task.args
    extra = EXTRA if args["attention"] == "landmark" else 0
    size = read_shape(Path(cell.model.source))["vocab_size"] - extra
    began = time.perf_counter()
    text = Text(args["corpus"], cell.task.digest, store.work(cell.key).parents[1] / "tokens")
    shards = text.with_new_vocabulary(size, World(Ranks(), "cpu"))
    print(f"{shards.total} tokens of {size} in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
