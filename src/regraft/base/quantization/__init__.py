"""Readers of bases that other tools quantised, one format a file; see :mod:`regraft.base.quantization.formats`."""
