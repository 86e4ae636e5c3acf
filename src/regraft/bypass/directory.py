"""Adapter directories: read any kind, write our own.

What is written is a PEFT directory first: ``adapter_config.json`` and ``adapter_model.safetensors`` hold the linear
part with every scale folded into B and alpha = r, so that each consumer, also one that ignores rsLoRA or
alpha_pattern, computes the same. A non-linear recovery part lies in ``recovery.safetensors``, provenance in
``regraft.json``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from regraft.bypass.adapter import Adapter
from regraft.bypass.attach import attached
from regraft.bypass.bypass import Bypass
from regraft.bypass.kinds import to_torch
from regraft.errors import IncompatibleAdapterError
from regraft.formats.adapter.content import StoredAdapter
from regraft.formats.adapter.kinds import KINDS, LORA
from regraft.formats.adapter.peft_config import CONFIG_NAME
from regraft.formats.adapter.read import FACTORS, read_factors
from regraft.formats.records import RECORD_NAME
from regraft.formats.slots import leaf
from regraft.models.load import Base
from regraft.models.slots import slot_paths, slot_shapes
from regraft.storage import file_sha256, write_json

PROBE_TOKENS = 8


def read_adapter(path: str | Path, base: Base) -> Adapter:
    """Read a PEFT or regraft adapter directory for ``base``, and prove that it acts on it.

    Raises:
        UsageError, FormatError, IncompatibleAdapterError: see :func:`regraft.formats.adapter.read.read_factors`;
            also an adapter that leaves the base's logits as they were.
    """
    folder, model = Path(path), base.model
    # Hashing a base that is not compressed takes a while; only an adapter with a record says which base it is for.
    fingerprint = base.fingerprint if (folder / RECORD_NAME).exists() else None
    stored = read_factors(
        folder,
        slot_paths(model),
        slot_shapes(model),
        base_name=base.name,
        base_fingerprint=fingerprint,
        kept=base.kept,
    )
    adapter = _to_torch(stored)
    _probe(adapter, base)
    return adapter


def _to_torch(stored: StoredAdapter) -> Adapter:
    assert stored.path is not None
    files = [stored.path / kind.file for kind in KINDS.values()]
    return Adapter(
        stored.name,
        {slot: [to_torch(factors) for factors in added] for slot, added in stored.bypasses.items()},
        stored.peft_config,
        stored.record,
        stored.path,
        file_sha256(next(file for file in files if file.exists())),
    )


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
    scales = {}
    for kind in KINDS.values():
        found = adapter.of(kind.name)
        if found and kind.name == LORA:
            paths = slot_paths(base.model)
            save_file(_peft_tensors(found, paths), folder / kind.file, metadata={"format": "pt"})
            write_json(folder / CONFIG_NAME, _peft_config(found, paths, base))
        elif found:
            factors = {f"{slot}.{name}": _half(getattr(one, name)) for slot, one in found.items() for name in FACTORS}
            save_file(factors, folder / kind.file, metadata={"format": "pt"})
            scales[kind.name] = {slot: one.scale for slot, one in found.items()}
    if adapter.record is not None:
        write_json(folder / RECORD_NAME, adapter.record.with_scales(scales).to_json())


def _peft_tensors(lora: Mapping[str, Bypass], paths: Mapping[str, str]) -> dict[str, torch.Tensor]:
    tensors = {}
    for slot, one in lora.items():
        down, up = _balanced(one)
        tensors[f"base_model.model.{paths[slot]}.lora_A.weight"] = _half(down)
        tensors[f"base_model.model.{paths[slot]}.lora_B.weight"] = _half(up)
    return tensors


def _balanced(lora: Bypass) -> tuple[torch.Tensor, torch.Tensor]:
    """A and s·B, with the scale moved between them where B would leave float16's range."""
    down, up = lora.down.detach(), lora.scale * lora.up.detach()
    if up.abs().max() > 1e4:
        factor = (up.abs().max() / down.abs().max().clamp(min=1e-12)).sqrt()
        down, up = down * factor, up / factor
    return down, up


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().half().contiguous()


def _peft_config(lora: Mapping[str, Bypass], paths: Mapping[str, str], base: Base) -> dict[str, Any]:
    ranks = {slot: one.rank for slot, one in lora.items()}
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
