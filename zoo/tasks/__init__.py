"""One file per source of data: each reads its package, or a seed, and yields rows."""
