"""A base in torch: loading it, its slots, walking its layers."""
