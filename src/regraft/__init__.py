"""Carry existing LoRA adapters over to a compressed LLM, and recover what the compression cost them."""

__version__ = "0.1.0"
