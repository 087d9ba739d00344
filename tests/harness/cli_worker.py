"""One rank of a `lacuna` command."""

import sys

from lacuna.cli import main

sys.exit(main(sys.argv[1:]))
