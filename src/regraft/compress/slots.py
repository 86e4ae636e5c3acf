"""Round the slots of a loaded model, layer by layer, each put back in place as soon as it is rounded.

Besides the model, memory holds one slot's work, the packed result and, where a slot is calibrated, the hidden states
of the calibration text at one layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from regraft.compress.calibrate import SlotInputs
from regraft.compress.quantize import gptq, hqq, rtn
from regraft.compress.quantize.grid import Grid
from regraft.compress.reading import Text
from regraft.compress.recipe import DENSE, SlotPlan, fit_group_size
from regraft.errors import FormatError
from regraft.formats.base_record import SlotRecord
from regraft.formats.quantized.compressed_tensors_config import Scheme
from regraft.formats.slots import layer_index
from regraft.models.load import Base
from regraft.models.quantized_tensor import QuantizedTensor
from regraft.models.slots import iter_slots, slot_paths
from regraft.models.state import as_stored
from regraft.progress import Progress

EMBEDDING_BITS = 8


@dataclass
class Packed:
    """What was rounded: tensors by name on disk, schemes by module path, records by slot or module path."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    schemes: dict[str, Scheme] = field(default_factory=dict)
    slots: dict[str, SlotRecord] = field(default_factory=dict)
    embeddings: dict[str, SlotRecord] = field(default_factory=dict)
    slot_bytes: int = 0
    slot_weights: int = 0

    def add(self, path: str, quantized: QuantizedTensor, plan: SlotPlan) -> None:
        """Take in the packed weight of a module."""
        whole_row = quantized.group_size == quantized.shape[1] != plan.asked
        self.tensors |= {name: tensor.cpu() for name, tensor in quantized.to_tensors(path).items()}
        self.schemes[path] = Scheme(plan.bits, 0 if whole_row else plan.group_size, plan.symmetric)

    @property
    def bits_per_weight(self) -> float:
        """Over the packed slots, scales and zero points included; 16 if none is packed."""
        return 8 * self.slot_bytes / self.slot_weights if self.slot_weights else float(DENSE)


def round_slots(
    base: Base,
    plans: Mapping[str, SlotPlan],
    text: Text | None,
    *,
    note: Callable[[str], None],
    progress: Progress,
) -> Packed:
    """Round every slot of ``base`` in place; ``text`` is needed if any plan's method is ``gptq``.

    Raises:
        FormatError: a weight or its calibration inputs are not finite; names the slot.
    """
    packed, paths = Packed(), slot_paths(base.model)
    layers: dict[int, dict[str, nn.Linear]] = defaultdict(dict)
    for slot, linear in iter_slots(base.model):
        layers[layer_index(slot)][slot] = linear
    inputs = SlotInputs(base, text) if text is not None else None
    with progress.track(len(plans), "slots") as advance:
        for layer, linears in layers.items():
            for stage in inputs.stages(layer, linears) if inputs else [list(linears)]:
                calibrated = {slot: linears[slot] for slot in stage if plans[slot].method == "gptq"}
                grams = inputs.grams(layer, calibrated) if inputs and calibrated else {}
                for slot in stage:
                    _round_slot(packed, slot, paths[slot], linears[slot], plans[slot], grams.get(slot), note)
                    advance(error=f"{packed.slots[slot].error:.3f}")
            if inputs:
                inputs.advance(layer)
    return packed


def _round_slot(
    packed: Packed,
    slot: str,
    path: str,
    linear: nn.Linear,
    plan: SlotPlan,
    gram: Tensor | None,
    note: Callable[[str], None],
) -> None:
    weight = linear.weight.data.float()
    if not weight.isfinite().all():
        raise FormatError(f"weight of {slot}", expected="finite values", found="inf or nan")
    if plan.is_dense:
        record = _record(weight, as_stored(weight).float(), plan, gram)
        packed.slots[slot] = record.model_copy(update={"method": "none", "group_size": 0, "symmetric": True})
        return
    quantized = _quantize(weight, plan, gram, lambda message: note(f"{slot}: {message}"))
    rounded = quantized.dequantize()
    packed.slots[slot] = _record(weight, rounded, plan, gram)
    packed.add(path, quantized, plan)
    packed.slot_bytes += quantized.nbytes
    packed.slot_weights += weight.numel()
    linear.weight.data = rounded.to(linear.weight.dtype)


def _quantize(weight: Tensor, plan: SlotPlan, gram: Tensor | None, note: Callable[[str], None]) -> QuantizedTensor:
    grid = Grid(plan.bits, plan.group_size, plan.symmetric)
    if plan.method == "rtn":
        return rtn.quantize(weight, grid)
    if plan.method == "hqq":
        return hqq.quantize(weight, grid)
    if gram is None:
        raise ValueError("gptq needs the Gram matrix of the slot's inputs")
    return gptq.quantize(weight, grid, gram, act_order=plan.act_order, note=note)


def _record(weight: Tensor, rounded: Tensor, plan: SlotPlan, gram: Tensor | None) -> SlotRecord:
    error = weight - rounded
    return SlotRecord(
        bits=plan.bits,
        group_size=plan.group_size,
        symmetric=plan.symmetric,
        method=plan.method,
        error=_ratio(error.square().sum(), weight.square().sum()),
        weighted_error=None if gram is None else _ratio(_energy(error, gram), _energy(weight, gram)),
    )


def _energy(weight: Tensor, gram: Tensor) -> Tensor:
    """``||W X||_F²`` from ``gram = X Xᵀ``."""
    return ((weight @ gram) * weight).sum()


def _ratio(part: Tensor, whole: Tensor) -> float:
    """The root of a ratio of energies; 0 where there is nothing."""
    return float((part / whole).clamp(min=0).sqrt()) if whole > 0 else 0.0


def round_embeddings(base: Base, packed: Packed, group_size: int) -> None:
    """Pack the embedding, and the head unless it is tied to it, in 8 bits; the model keeps its own weights."""
    ends = [base.model.get_input_embeddings(), base.model.get_output_embeddings()]
    tied = ends[0].weight.data_ptr() == ends[1].weight.data_ptr()
    paths = {id(module): path for path, module in base.model.named_modules()}
    for module in ends[:1] if tied else ends:
        weight = module.weight.data.float()
        size = fit_group_size(group_size, weight.shape[1])
        plan = SlotPlan("rtn", EMBEDDING_BITS, size, symmetric=True, act_order=False, asked=group_size)
        quantized = _quantize(weight, plan, None, lambda message: None)
        packed.embeddings[paths[id(module)]] = _record(weight, quantized.dequantize(), plan, None)
        packed.add(paths[id(module)], quantized, plan)
