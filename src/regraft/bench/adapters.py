"""Random adapters in the directories that PEFT and ``regraft adapt`` write: only their cost is of interest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from regraft import __version__
from regraft.formats.adapter.kinds import GELU, KINDS
from regraft.formats.adapter.peft_config import CONFIG_NAME
from regraft.formats.adapter.peft_directory import WEIGHTS_NAME
from regraft.formats.adapter.record import AdapterRecord
from regraft.formats.records import RECORD_NAME
from regraft.storage import write_json

SPREAD = 0.02  # of the factors: far from zero, and small enough to leave the logits finite

Shapes = Mapping[str, tuple[int, int]]  # by slot, (out, in)


def write_lora(folder: Path, shapes: Shapes, *, rank: int, seed: int, targets: Collection[str] | None = None) -> Path:
    """Write a PEFT LoRA directory with float16 factors; returns it.

    Args:
        folder: made if it is missing.
        shapes: of the base's slots.
        rank: of every factor; alpha is twice it.
        seed: another one is another adapter.
        targets: last parts of the slots' names (``q_proj``); None for all.
    """
    random = np.random.default_rng(seed)
    chosen = {slot: shape for slot, shape in shapes.items() if targets is None or slot.rpartition(".")[2] in targets}
    tensors = {}
    for slot, (out, width) in chosen.items():
        name = f"base_model.model.model.{slot}"
        tensors[f"{name}.lora_A.weight"] = _factor(random, rank, width)
        tensors[f"{name}.lora_B.weight"] = _factor(random, out, rank)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_NAME)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({slot.rpartition(".")[2] for slot in chosen}),
    }
    write_json(folder / CONFIG_NAME, config)
    return folder


def write_recovered(
    folder: Path, shapes: Shapes, *, rank: int, recovery_rank: int, seed: int, fingerprint: str
) -> Path:
    """Write an adapter of CA-LoRA's form: a LoRA, and beside it a GELU recovery bypass, on every slot; returns it.

    Args:
        folder: made if it is missing.
        shapes: of the base's slots.
        rank: of the LoRA.
        recovery_rank: of the recovery bypasses.
        seed: another one is another adapter.
        fingerprint: of the base that it is for.
    """
    write_lora(folder, shapes, rank=rank, seed=seed)
    random = np.random.default_rng([seed, 1])
    tensors = {}
    for slot, (out, width) in shapes.items():
        tensors[f"{slot}.down"] = _factor(random, recovery_rank, width)
        tensors[f"{slot}.up"] = _factor(random, out, recovery_rank)
    save_file(tensors, folder / KINDS[GELU].file)
    record = AdapterRecord(
        regraft_version=__version__,
        base_name="any",
        base_fingerprint=fingerprint,
        teacher_fingerprint=fingerprint,
        recovery="gelu",
        recovery_scales=dict.fromkeys(shapes, 1.0),
        seed=seed,
    )
    write_json(folder / RECORD_NAME, record.to_json())
    return folder


def _factor(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.float16]:
    return (SPREAD * random.standard_normal((rows, columns), np.float32)).astype(np.float16)
