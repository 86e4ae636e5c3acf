"""A pytest plugin that takes the core built by `make sanitize`, instead of the installed one."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

(path,) = (Path(__file__).parents[1] / "build" / "sanitized" / "regraft" / "native").glob("_core*.so")
spec = spec_from_file_location("regraft.native._core", path)
assert spec is not None and spec.loader is not None
core = sys.modules[spec.name] = module_from_spec(spec)
spec.loader.exec_module(core)
