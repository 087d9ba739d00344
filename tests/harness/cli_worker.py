"""The command line, as mpirun starts it."""

import sys

from lacuna.cli import main

sys.exit(main(sys.argv[1:]))
