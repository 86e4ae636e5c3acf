"""``regraft.json`` of a compressed base: what it was made from, how, and what that cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from regraft.config import Strict
from regraft.formats.experts import Experts
from regraft.formats.records import Record, read_record_of
from regraft.formats.slots import AXES

FORMAT_VERSION = 3  # 2: pruned bases; 3: experts


class Original(Strict):
    """The uncompressed base: its name as given, and its fingerprint."""

    name: str
    fingerprint: str


class SlotRecord(Strict):
    """How one slot is stored.

    Attributes:
        bits: 16 if the slot is not packed.
        group_size: input columns that share a scale; what the recipe asked for, or what divides the row.
        symmetric: whether there are no zero points.
        method: ``rtn``, ``hqq`` or ``gptq``; ``none`` if the slot is not packed.
        error: ``||W - W'||_F / ||W||_F``.
        weighted_error: ``||(W - W') X||_F / ||W X||_F`` over the calibration inputs X, where there were any.
    """

    bits: int
    group_size: int
    symmetric: bool
    method: str
    error: float
    weighted_error: float | None = None


class Sizes(Strict):
    """Bytes of the weights on disk, and bits per weight.

    Bytes as found, if they were float16, and as written; bits over the compressed linears, and over the whole model.
    """

    bytes_before: int
    bytes_float16: int
    bytes_after: int
    bits_per_weight: float
    bits_per_weight_model: float


class PerplexityRecord(Strict):
    """Perplexity on held-out text, before and after."""

    before: float
    after: float
    text_sha256: str
    num_tokens: int


class Text(Strict):
    """Text without an adapter: ``self``, a file's name or ``none``; the hash of its tokens, and how many they are."""

    source: str
    sha256: str
    num_tokens: int


class AdapterRows(Strict):
    """Rows of a task that were read with its adapter attached.

    Attributes:
        name: of the adapter's directory.
        sha256: of what the adapter computes.
        rows_sha256: of the rows' tokens.
        num_sequences, num_tokens: how many rows and tokens.
    """

    name: str
    sha256: str
    rows_sha256: str
    num_sequences: int
    num_tokens: int


class Calibration(Text):
    """What a calibrated method saw."""

    adapters: list[AdapterRows] = []


class Widths(Strict):
    """The sizes of a decoder whose layers are all alike. ``heads`` are query heads, ``kv_heads`` divide them."""

    layers: int
    hidden: int
    head_dim: int
    heads: int
    kv_heads: int
    mlp: int


class LayerWidths(Strict):
    """One layer of a pruned base: the layer of the original that it was, and its sizes.

    ``biases`` are slots (``mlp.down_proj``) with a bias that ``config.json`` does not tell of.
    """

    source: int
    heads: int
    kv_heads: int
    mlp: int
    biases: list[str] = []


class Pruned(Strict):
    """What pruning left; which parts they are of the original is in ``kept.safetensors``.

    Attributes:
        original: sizes of the original base.
        hidden: channels of the residual stream.
        layers: in order.
        removed: share of the parameters of the original's layers that is gone.
        kept_sha256: of ``kept.safetensors``.
    """

    original: Widths
    hidden: int
    layers: list[LayerWidths]
    removed: float
    kept_sha256: str

    @property
    def slot_shapes(self) -> dict[str, tuple[int, int]]:
        """Slot name → (out features, in features)."""
        return {
            f"layers.{number}.{name}": shape
            for number, layer in enumerate(self.layers)
            for name, shape in slot_shapes_of(
                self.hidden, self.original.head_dim, layer.heads, layer.kv_heads, layer.mlp
            ).items()
        }


def slot_shapes_of(hidden: int, head_dim: int, heads: int, kv_heads: int, mlp: int) -> dict[str, tuple[int, int]]:
    """The slots of a layer of these sizes, by their names within it → (out features, in features)."""
    width = {"channels": hidden, "queries": heads * head_dim, "keys": kv_heads * head_dim, "neurons": mlp}
    return {name: (width[rows], width[columns]) for name, (rows, columns) in AXES.items()}


class Recovered(Strict):
    """The LoRA that was trained after pruning and merged; its factors are in ``recovered.safetensors``.

    ``training`` is the trainer's account, with the dev scores in nats per token.
    """

    rank: int
    text: Text
    training: dict[str, Any]
    sha256: str


class ExpertsRecord(Experts):
    """The experts that MLPs were cut in, as ``config.json`` has them, and how well they are chosen.

    Attributes:
        captured: of each layer, the share of what all neurons add (absolute values) that a token's experts have, on
            calibration text; of a router, on tokens that it was not trained on.
        best: the same for the best choice of as many experts.
    """

    captured: list[float]
    best: list[float]


class BaseRecord(Record):
    """The whole of a compressed base's ``regraft.json``.

    ``stock_loadable`` says whether plain ``transformers`` with ``compressed-tensors`` loads the directory;
    ``stock_loadable_reason`` why not, or what it takes. ``notes`` say where the result is not what was asked for.
    """

    noun = "a base"
    newest = FORMAT_VERSION

    kind: Literal["base"] = "base"
    format_version: int = FORMAT_VERSION
    regraft_version: str
    fingerprint: str
    original: Original
    recipe: dict[str, Any]
    sizes: Sizes
    slots: dict[str, SlotRecord]
    embeddings: dict[str, SlotRecord] = {}
    pruned: Pruned | None = None
    recovered: Recovered | None = None
    experts: ExpertsRecord | None = None
    perplexity: PerplexityRecord | None = None
    calibration: Calibration | None = None
    stock_loadable: bool = True
    stock_loadable_reason: str | None = None
    seconds: dict[str, float] = {}
    notes: list[str] = []


def read_record(folder: Path) -> BaseRecord | None:
    """The directory's base record, or None if it has none.

    Raises:
        FormatError: there is a record, but it is no base's, or of a newer format.
    """
    return read_record_of(folder, "base", BaseRecord)
