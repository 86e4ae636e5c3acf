"""GGUF files of bases and adapters, written without torch."""
