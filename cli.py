"""The command line: parses, calls, prints; no logic."""


def main() -> int:
    """Entry point of the console script."""
    return 0
