"""An error in a sentence for people."""

from __future__ import annotations


def worded(error: Exception) -> str:
    """What the error says; of the system's own, the file and what is wrong with it, without a number."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
