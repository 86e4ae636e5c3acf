"""Open a base for the engine: packed weights, architecture, tokenizer, and what adapters are held against."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regraft.engine.weights.architecture import Architecture, read_architecture
from regraft.engine.weights.engine_file import PackedBase, read_packed, write_packed
from regraft.engine.weights.huge_pages import read_into_memory
from regraft.engine.weights.native_model import KvBits, build
from regraft.engine.weights.parameters import check_parameters
from regraft.errors import FormatError
from regraft.formats.adapter.content import StoredAdapter
from regraft.formats.adapter.read import read_factors
from regraft.formats.base_record import Pruned, read_record, slot_shapes_of
from regraft.formats.gguf.file import parts_by_name
from regraft.formats.kept import Kept, read_kept
from regraft.formats.open_weights import open_weights
from regraft.formats.source import Kind, Source, locate
from regraft.formats.text.tokenizer import Tokenizer, open_tokenizer
from regraft.native import _core
from regraft.progress import Progress, silent
from regraft.storage import cache_home


@dataclass(frozen=True)
class OpenedBase:
    """A base, ready to run.

    Attributes:
        name: what the caller called it.
        fingerprint: that of its record if it is a compressed one, else None.
        state: changes whenever its files do.
        model: weights in a mapped file.
        packed: that file.
        num_bytes: of it.
        kv_bits: of keys and values.
        kept: what a pruned base has kept of the original; None for any other.
    """

    name: str
    fingerprint: str | None
    state: str
    architecture: Architecture
    tokenizer: Tokenizer
    model: _core.Model
    packed: Path
    num_bytes: int
    kv_bits: KvBits = 16
    kept: Kept | None = None

    @property
    def slot_shapes(self) -> dict[str, tuple[int, int]]:
        """Slot name → (out features, in features)."""
        a = self.architecture
        return {
            f"layers.{layer}.{name}": shape
            for layer in range(a.layers)
            for name, shape in slot_shapes_of(
                a.hidden, a.head_dim, a.heads[layer], a.kv_heads[layer], a.mlp[layer]
            ).items()
        }

    @property
    def adapter_shapes(self) -> dict[str, tuple[int, int]]:
        """The same of the base that adapters are trained on: of a pruned base, the original."""
        return self.kept.original_slot_shapes if self.kept else self.slot_shapes

    def read_adapter(self, folder: Path) -> StoredAdapter:
        """Read an adapter's directory for this base; what it raises: :func:`read_factors`."""
        shapes = self.slot_shapes
        paths = {slot: f"model.{slot}" for slot in shapes}
        return read_factors(
            folder,
            paths,
            shapes,
            base_name=self.name,
            base_fingerprint=self.fingerprint,
            kept=self.kept,
        )

    def in_huge_pages(self, goes_on: Callable[[], bool] = lambda: True) -> _core.Model | None:
        """The model once more, with its weights in memory of their own; see :mod:`regraft.engine.weights.huge_pages`.

        Args:
            goes_on: asked now and then; once it says no, nothing comes of it.

        Raises:
            FormatError: the packed file is no longer what it was.
        """
        memory = read_into_memory(self.packed, goes_on)
        if memory is None:
            return None
        packed = read_packed(self.packed, memory)
        if packed.source != self.state:
            raise FormatError(f"{self.packed} is of another base by now")
        return build(self.architecture, packed.parameters, kv_bits=self.kv_bits)


def open_base(
    argument: str | Path, *, head_bits: Literal[8, 16] = 16, kv_bits: KvBits = 16, progress: Progress = silent
) -> OpenedBase:
    """Open a BASE argument without torch. The first time its weights are packed, into the cache; later that is mapped.

    Args:
        argument: see ``regraft run --help``.
        head_bits: of embeddings and head, see :func:`regraft.engine.weights.engine_file.write_packed`.
        kv_bits: of keys and values, see :func:`regraft.engine.weights.native_model.build`.
        progress: told of the packing.

    Raises:
        UsageError: there is no such base.
        UnsupportedBaseError: the engine does not run this kind of model.
        FormatError: a file is missing or damaged.
    """
    source = locate(argument)
    record = read_record(source.path) if source.kind is Kind.COMPRESSED else None
    pruned = record.pruned if record else None
    path, packed = _packed(source, pruned, head_bits, progress)
    architecture = read_architecture(packed.config, pruned)
    model = build(architecture, packed.parameters, kv_bits=kv_bits)
    tokenizer = open_tokenizer(source)
    fingerprint = record.fingerprint if record else None
    kept = read_kept(source.path, pruned) if pruned else None
    return OpenedBase(
        source.name,
        fingerprint,
        packed.source,
        architecture,
        tokenizer,
        model,
        path,
        packed.num_bytes,
        kv_bits=kv_bits,
        kept=kept,
    )


def _packed(
    source: Source, pruned: Pruned | None, head_bits: Literal[8, 16], progress: Progress
) -> tuple[Path, PackedBase]:
    """The packed file of a base, made if it is missing or of an older state of the base."""
    state = _state(source)
    folder = cache_home() / "engine"
    path = folder / f"{hashlib.sha256(str(source.path.resolve()).encode()).hexdigest()[:20]}-{head_bits}.packed"
    try:
        packed = read_packed(path)
        if packed.source == state:
            return path, packed
    except FormatError:
        pass  # missing, or of another version
    weights = open_weights(source)
    check_parameters(weights, read_architecture(weights.config, pruned), pruned)  # fails before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    progress.note(f"packing {source.name} for this engine into {path} (once)")
    write_packed(weights, path, state, head_bits=head_bits, progress=progress)
    return path, read_packed(path)


def _state(source: Source) -> str:
    """Names, sizes and times of the files that weights and configuration are read from."""
    if source.path.is_file():
        files = parts_by_name(source.path)
    else:
        files = [*sorted(source.path.glob("*.safetensors")), *sorted(source.path.glob("*config.json"))]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    return hashlib.sha256(repr(stats).encode()).hexdigest()
