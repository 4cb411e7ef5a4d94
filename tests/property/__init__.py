"""The property harness: one table of operations, random graphs, and what both must satisfy."""
