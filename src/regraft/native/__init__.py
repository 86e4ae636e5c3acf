"""The engine's native core: kernels, and one call per step. It needs numpy, and no torch."""
