"""Adapter directories: read any kind, write our own.

What is written is a PEFT directory first: ``adapter_config.json`` and ``adapter_model.safetensors`` hold the linear
part with every scale folded into B and alpha = r, so that each consumer, also one that ignores rsLoRA or
alpha_pattern, computes the same. A non-linear recovery part lies in ``recovery.safetensors``, provenance in
``regraft.json``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from regraft.base.fingerprint import file_sha256
from regraft.base.load import Base
from regraft.base.slots import leaf, slot_paths, slot_shapes
from regraft.bypass.adapter import Adapter
from regraft.bypass.attach import attached
from regraft.bypass.lora import LoRA
from regraft.bypass.peft_config import CONFIG_NAME
from regraft.bypass.peft_directory import WEIGHTS_NAME, read_peft
from regraft.bypass.record import RECORD_NAME, read_record
from regraft.bypass.recovery import Recovery
from regraft.errors import FormatError, IncompatibleAdapterError
from regraft.storage import write_json

RECOVERY_NAME = "recovery.safetensors"
PROBE_TOKENS = 8


def read_adapter(path: str | Path, base: Base) -> Adapter:
    """Read a PEFT or regraft adapter directory for ``base``, and prove that it acts on it.

    Raises:
        UsageError, FormatError, IncompatibleAdapterError: see :func:`regraft.bypass.peft_directory.read_peft`; also a
            regraft adapter made for another base, and an adapter that leaves the base's logits as they were.
    """
    folder = Path(path)
    adapter = _read(folder, base)
    _probe(adapter, base)
    return adapter


def _read(folder: Path, base: Base) -> Adapter:
    if not folder.is_dir() or (record := read_record(folder)) is None:
        return read_peft(folder, slot_paths(base.model), slot_shapes(base.model))
    if record.base_fingerprint != base.fingerprint:
        raise IncompatibleAdapterError(
            f"{folder} was adapted for another base",
            expected=f"{record.base_name} (fingerprint {record.base_fingerprint[:12]})",
            found=f"{base.name} ({base.fingerprint[:12]})",
            hint="Give that base, or adapt the original adapter to this one.",
        )
    shapes = slot_shapes(base.model)
    adapter = Adapter(folder.resolve().name, path=folder)
    if (folder / WEIGHTS_NAME).exists():
        adapter = read_peft(folder, slot_paths(base.model), shapes)
    adapter.record = record
    if record.recovery_scales:
        adapter.recovery = _read_recovery(folder / RECOVERY_NAME, record.recovery_scales, shapes)
        adapter.sha256 = adapter.sha256 or file_sha256(folder / RECOVERY_NAME)
    return adapter


def _read_recovery(path: Path, scales: dict[str, float], shapes: dict[str, tuple[int, int]]) -> dict[str, Recovery]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} cannot be read: {error}") from None
    expected = {f"{slot}.{factor}" for slot in scales for factor in ("down", "up")}
    if difference := sorted(expected ^ tensors.keys()):
        found = "missing" if difference[0] in expected else "not named in regraft.json"
        raise FormatError(f"{path}: tensor {difference[0]} is {found}")
    recovery = {}
    for slot, scale in scales.items():
        down, up = tensors[f"{slot}.down"].float(), tensors[f"{slot}.up"].float()
        if (up.shape[0], down.shape[1]) != shapes.get(slot):
            raise FormatError(
                f"{path}: {slot} maps {down.shape[1]} to {up.shape[0]}", expected=str(shapes.get(slot, "no such slot"))
            )
        recovery[slot] = Recovery(down, up, scale)
    return recovery


@torch.no_grad()
def _probe(adapter: Adapter, base: Base) -> None:
    ids = torch.arange(PROBE_TOKENS, device=base.model.device).unsqueeze(0) + 3
    plain = base.model(input_ids=ids).logits
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(base.model.device, base.model.dtype)
    with attached(base.model, adapter.bypasses):
        changed = base.model(input_ids=ids).logits
    if not torch.isfinite(changed).all():
        raise IncompatibleAdapterError(f"adapter {adapter.name} makes the base's logits overflow")
    if torch.equal(plain, changed):
        raise IncompatibleAdapterError(f"adapter {adapter.name} has no effect on {base.name}: the logits are the same")


def write_adapter(adapter: Adapter, folder: Path, base: Base) -> None:
    """Write an adapter's files into an existing directory; factors are stored as float16."""
    if adapter.lora:
        paths = slot_paths(base.model)
        save_file(_peft_tensors(adapter, paths), folder / WEIGHTS_NAME, metadata={"format": "pt"})
        write_json(folder / CONFIG_NAME, _peft_config(adapter, paths, base))
    if adapter.recovery:
        factors = {
            f"{slot}.{factor}": _half(getattr(bypass, factor))
            for slot, bypass in adapter.recovery.items()
            for factor in ("down", "up")
        }
        save_file(factors, folder / RECOVERY_NAME, metadata={"format": "pt"})
    if adapter.record is not None:
        write_json(folder / RECORD_NAME, adapter.record.model_dump())


def _peft_tensors(adapter: Adapter, paths: dict[str, str]) -> dict[str, torch.Tensor]:
    tensors = {}
    for slot, lora in adapter.lora.items():
        down, up = _balanced(lora)
        tensors[f"base_model.model.{paths[slot]}.lora_A.weight"] = _half(down)
        tensors[f"base_model.model.{paths[slot]}.lora_B.weight"] = _half(up)
    return tensors


def _balanced(lora: LoRA) -> tuple[torch.Tensor, torch.Tensor]:
    """A and s·B, with the scale moved between them where B would leave float16's range."""
    down, up = lora.down.detach(), lora.scale * lora.up.detach()
    if up.abs().max() > 1e4:
        factor = (up.abs().max() / down.abs().max().clamp(min=1e-12)).sqrt()
        down, up = down * factor, up / factor
    return down, up


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().half().contiguous()


def _peft_config(adapter: Adapter, paths: dict[str, str], base: Base) -> dict[str, Any]:
    ranks = {slot: lora.rank for slot, lora in adapter.lora.items()}
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    other = {re.escape(paths[slot]): rank for slot, rank in ranks.items() if rank != common}
    leaves = sorted({leaf(slot) for slot in ranks})
    covers_all = {slot for slot in paths if leaf(slot) in leaves} == set(ranks)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.name),
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": leaves if covers_all else sorted(paths[slot] for slot in ranks),
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
