"""The contenders of benchmarks/engine.py, each a process of its own; all but regraft's run in ``.venv-peers``."""
