"""One rank of `lacuna` commands, one after the other: `then` stands between them."""

import sys
from itertools import groupby

from lacuna.cli import main

sys.exit(max(main(list(words)) for between, words in groupby(sys.argv[1:], "then".__eq__) if not between))
