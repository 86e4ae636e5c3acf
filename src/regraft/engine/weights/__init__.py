"""A base and its adapters in the native core's layout."""
