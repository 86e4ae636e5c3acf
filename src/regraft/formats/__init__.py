"""Everything that lies on disk: bases, adapters, tokenizers, records. numpy reads it; nothing here imports torch."""
