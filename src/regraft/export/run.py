"""Write what other engines load: a base as a Hugging Face directory or GGUF, an adapter as PEFT or GGUF."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from regraft.bypass.adapter import Adapter
from regraft.bypass.directory import read_adapter, write_adapter
from regraft.errors import ExportError, UsageError
from regraft.export.gguf.base import gguf_target, write_gguf
from regraft.export.gguf.lora import check_linear, write_gguf_lora
from regraft.export.gguf.vocabulary import read_vocabulary
from regraft.export.parity import Parity, compare, llama_cpp_logits, our_logits, probe, transformers_logits
from regraft.formats.adapter.read import read_factors
from regraft.formats.base_record import BaseRecord, read_record
from regraft.formats.open_weights import open_weights
from regraft.formats.records import RECORD_NAME
from regraft.formats.source import Kind, Source, locate
from regraft.formats.text.tokenizer import open_tokenizer
from regraft.models.load import Base, load_base
from regraft.progress import Progress, silent
from regraft.storage import output_directory, output_file

Format = Literal["hf", "peft", "gguf"]
HALF_TOLERANCE = 0.01  # float16 weights beside float32 ones
GGUF_TOLERANCE = 0.1  # llama.cpp multiplies with activations in 8 bits
NOT_ASKED = "not asked for"
_OWN = (RECORD_NAME, "kept.safetensors", "recovered.safetensors")


@dataclass(frozen=True)
class Export:
    """What is to be written, and how.

    Attributes:
        base: a BASE argument.
        out: a directory, or for ``gguf`` a file, that is made.
        form: ``hf`` for a base, ``peft`` for an adapter, ``gguf`` for either.
        check: whether to hold its logits, as the engine that it is for computes them, against ours.
        overwrite: whether ``out`` may exist.
        progress: told of the work.
    """

    base: str | Path
    out: Path
    form: Format
    check: bool = True
    overwrite: bool = False
    progress: Progress = silent


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: a directory, or a GGUF file.
        format: of it.
        bytes: of all its files.
        parity: beside the engine that it is for, or None.
        unchecked: why ``parity`` is None, or None.
    """

    path: Path
    format: Format
    bytes: int
    parity: Parity | None
    unchecked: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"path": str(self.path)}


def parse_format(text: str) -> Format:
    """What ``--format`` says.

    Raises:
        UsageError: another word.
    """
    if text not in ("hf", "peft", "gguf"):
        raise UsageError("--format", expected="hf, peft or gguf", found=repr(text))
    return text  # type: ignore[return-value]


def export_base(job: Export) -> Exported:
    """Write a base as a directory for plain ``transformers`` (``hf``), or as a GGUF file (``gguf``).

    Weights of 4 and 8 bits stay what they are, packed; in a directory all others become float16, in GGUF those of fewer
    bits are packed in 4.

    Raises:
        UsageError: no such base, no such form of one, or an output that cannot be written.
        FormatError: the base is damaged.
        ExportError: the form cannot say what the base is, or the other engine computes something else from it.
    """
    source = locate(job.base)
    record = read_record(source.path) if source.kind is Kind.COMPRESSED else None
    if job.form == "peft":
        raise UsageError("--format of a base", expected="hf or gguf", found="peft")
    return _base_as_gguf(job, source, record) if job.form == "gguf" else _base_as_directory(job, source, record)


def export_adapter(job: Export, folder: Path) -> Exported:
    """Write an adapter for its base as a plain PEFT directory (``peft``) or as a GGUF file (``gguf``).

    A linear recovery part is in the LoRA; what is written for a pruned base has the shapes that are left.

    Raises:
        UsageError, FormatError, IncompatibleAdapterError: see :func:`regraft.bypass.directory.read_adapter`.
        ExportError: a non-linear recovery part; else as :func:`export_base`.
    """
    if job.form == "hf":
        raise UsageError("--format of an adapter", expected="peft or gguf", found="hf")
    base = load_base(job.base, progress=job.progress)
    adapter = read_adapter(folder, base)
    check_linear(adapter)
    return _adapter_as_gguf(job, base, adapter, folder) if job.form == "gguf" else _adapter_as_peft(job, base, adapter)


def _base_as_gguf(job: Export, source: Source, record: BaseRecord | None) -> Exported:
    with _gguf_file(job) as path:
        _write_base(source, record, path, job.progress)
        parity, unchecked = _llama_parity(job, path)
    return Exported(job.out, job.form, job.out.stat().st_size, parity, unchecked)


def _base_as_directory(job: Export, source: Source, record: BaseRecord | None) -> Exported:
    _check_stock(record)
    with output_directory(job.out, overwrite=job.overwrite) as folder:
        if record is not None and record.stock_loadable:
            shutil.copytree(source.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_OWN))
        else:
            base = load_base(job.base, progress=job.progress)
            base.model.half().save_pretrained(folder)
            base.tokenizer.save_pretrained(folder)
        parity = None
        if job.check:
            base = load_base(job.base, progress=job.progress)
            tokens = probe(base)
            engine, theirs = transformers_logits(folder, tokens)
            parity = compare(our_logits(base, None, tokens), theirs, engine, tolerance=HALF_TOLERANCE)
    return Exported(job.out, job.form, _size(job.out), parity, None if job.check else NOT_ASKED)


def _adapter_as_peft(job: Export, base: Base, adapter: Adapter) -> Exported:
    with output_directory(job.out, overwrite=job.overwrite) as folder:
        write_adapter(replace(adapter, record=None), folder, base)
        parity = None
        if job.check:
            tokens, again = probe(base), read_adapter(folder, replace(base, kept=None))
            theirs = our_logits(base, again, tokens)
            parity = compare(our_logits(base, adapter, tokens), theirs, "read again", tolerance=HALF_TOLERANCE)
    return Exported(job.out, job.form, _size(job.out), parity, None if job.check else NOT_ASKED)


def _adapter_as_gguf(job: Export, base: Base, adapter: Adapter, folder: Path) -> Exported:
    source = locate(job.base)
    weights = open_weights(source)
    fingerprint = base.fingerprint if adapter.record is not None else None
    shapes = {"base_name": base.name, "base_fingerprint": fingerprint, "kept": base.kept}
    stored = read_factors(folder, weights.slot_paths, weights.slot_shapes, **shapes)  # type: ignore[arg-type]
    target, _ = gguf_target(weights.config, base.record.pruned if base.record else None)
    with _gguf_file(job) as path, tempfile.TemporaryDirectory() as scratch:
        write_gguf_lora(stored, target, path)
        whole = Path(scratch) / "base.gguf"
        if job.check:
            _write_base(source, base.record, whole, job.progress)
        parity, unchecked = _llama_parity(job, whole, adapter, path)
    return Exported(job.out, job.form, job.out.stat().st_size, parity, unchecked)


def _write_base(source: Source, record: BaseRecord | None, path: Path, progress: Progress) -> None:
    vocabulary = read_vocabulary(source, open_tokenizer(source))
    write_gguf(open_weights(source), vocabulary, path, pruned=record.pruned if record else None, progress=progress)


def _llama_parity(
    job: Export, path: Path, adapter: Adapter | None = None, lora: Path | None = None
) -> tuple[Parity | None, str | None]:
    if not job.check:
        return None, NOT_ASKED
    if importlib.util.find_spec("llama_cpp") is None:
        return None, "llama-cpp-python is not installed"
    base = load_base(job.base, progress=job.progress)
    tokens = probe(base)
    engine, theirs = llama_cpp_logits(path, base.tokenizer.decode(tokens), tokens, lora)
    return compare(our_logits(base, adapter, tokens), theirs, engine, tolerance=GGUF_TOLERANCE), None


def _check_stock(record: BaseRecord | None) -> None:
    if record is None:
        return
    if record.experts is not None:
        raise ExportError("plain transformers has no experts of this kind", hint="Export a base whose recipe has none.")
    if record.pruned is not None and len({(w.heads, w.kv_heads, w.mlp) for w in record.pruned.layers}) > 1:
        raise ExportError(
            "plain transformers has one width for all layers, and this base has several",
            hint="Compress with --uniform.",
        )


def _gguf_file(job: Export) -> Any:
    if job.out.suffix != ".gguf":
        raise UsageError(f"output {job.out}", expected="the name of a .gguf file", found=job.out.suffix or "none")
    return output_file(job.out, overwrite=job.overwrite)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
