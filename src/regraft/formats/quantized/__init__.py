"""Quantised weights on disk: regraft's own layout, and the checkpoints of other tools, one format a file."""
