"""The property harness: one table of operations, random programs, and their properties."""
