"""lacuna: what a language model loses, and gains in time, bytes and joules, when its attention leaves gaps."""

__version__ = "0.1.0"
