"""Adapters on disk: PEFT's directories, and what regraft adds to them."""
