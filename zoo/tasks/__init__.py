"""One file per task: each reads its package and yields ``{"prompt", "completion"}`` or ``{"messages"}`` rows."""
