"""GGUF files: metadata, families, weights and tokenizer."""
