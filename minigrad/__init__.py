"""minigrad: a deep-learning framework small enough to read in a weekend."""

__version__ = "0.1.0"
