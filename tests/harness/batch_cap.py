"""Batches of at most so many samples, whatever the harness would make; as a script: lacuna's CLI under that bound.

python batch_cap.py MOST ARGUMENT...
"""

import sys

from lacuna.harness.lm import Session

OWN = Session.each


def capped(most, seen=None):
    """`Session.each` with batches cut; the sizes of those that were worked on are added to `seen`."""

    def each(self, items, batches, work):
        def cut(todo):
            return (b[i : i + most] for b in batches(todo) for i in range(0, len(b), most))

        def told(batch):
            if seen is not None:
                seen.setdefault(self.cell.key, []).append(len(batch))
            return work(batch)

        return OWN(self, items, cut, told)

    return each


if __name__ == "__main__":
    from lacuna.cli import main

    Session.each = capped(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
