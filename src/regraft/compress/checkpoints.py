"""Checkpoints of a recipe's finished steps, kept beside the output until all are done."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import regraft
from regraft.compress.recipe import Step
from regraft.compress.recover import Factors
from regraft.config import Strict, parse
from regraft.formats.base_record import Calibration, ExpertsRecord, Pruned, Recovered
from regraft.formats.kept import read_kept, write_kept
from regraft.formats.safetensors_file import WEIGHTS_NAME
from regraft.models.load import Base
from regraft.models.merged_lora import read_recovered, write_recovered
from regraft.models.uneven import model_class
from regraft.storage import output_directory, read_json, work_directory, work_path, write_json

_STAGE_NAME = "stage.json"


class _Sizes(Strict):
    pruned: Pruned
    recovered: Recovered | None = None
    experts: ExpertsRecord | None = None


@dataclass(frozen=True)
class Stage:
    """What the steps so far have made of the base.

    Attributes:
        base: the model, with what it has kept.
        pruned: its sizes, once it is pruned.
        recovered: how it was recovered, once it is, and ``factors`` that were merged.
        experts: what its MLPs were cut in, once they are.
    """

    base: Base
    pruned: Pruned | None = None
    recovered: Recovered | None = None
    experts: ExpertsRecord | None = None
    factors: Factors = field(default_factory=dict)


class Checkpoints:
    """The work directory of one output: the model as the last finished step left it, in float32.

    Args:
        out: the output; its hidden sibling is made when there is something to keep.
    """

    def __init__(self, out: Path) -> None:
        self._out = out

    def names(self, fingerprint: str, steps: Sequence[Step], text: Calibration | None) -> list[str]:
        """Of each step, what names its result: all that it depends on."""
        names = []
        for count in range(1, len(steps) + 1):
            taken = [step.model_dump(mode="json") for step in steps[:count]]
            # Without defaults, so that what a new kind of text may add leaves the names of all others as they were.
            seen = text.model_dump(exclude_defaults=True) if text else None
            told = [regraft.__version__, fingerprint, taken, seen]
            names.append(hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:20])
        return names

    def latest(self, original: Base, names: Sequence[str]) -> tuple[int, Stage]:
        """How many steps are done, and what they left; the original and 0 if none is."""
        for done in range(len(names), 0, -1):
            folder = work_path(self._out) / names[done - 1]
            if (folder / _STAGE_NAME).exists():
                return done, _load(folder, original)
        return 0, Stage(original)

    def step_folder(self, name: str) -> Path:
        """Where a long step keeps what it needs to be resumed; gone once the step is done."""
        folder = work_directory(self._out) / f"{name}-running"
        folder.mkdir(exist_ok=True)
        return folder

    def save(self, name: str, stage: Stage) -> None:
        """Keep what a step left in place of what the one before did."""
        base, pruned, recovered = stage.base, stage.pruned, stage.recovered
        assert base.kept is not None and pruned is not None
        work = work_directory(self._out)
        before = [path for path in work.iterdir() if path.is_dir()]
        with output_directory(work / name, overwrite=True) as folder:
            tied = set(getattr(base.model, "all_tied_weights_keys", {}))
            state = {key: tensor.contiguous() for key, tensor in base.model.state_dict().items() if key not in tied}
            save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
            base.model.config.save_pretrained(folder)
            pruned = pruned.model_copy(update={"kept_sha256": write_kept(base.kept, folder)})
            if recovered is not None:
                sha256 = write_recovered(stage.factors, folder, torch.float32)
                recovered = recovered.model_copy(update={"sha256": sha256})
            sizes = _Sizes(pruned=pruned, recovered=recovered, experts=stage.experts)
            write_json(folder / _STAGE_NAME, sizes.model_dump())
        for path in before:
            shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Nothing is left to take up."""
        shutil.rmtree(work_path(self._out), ignore_errors=True)


def _load(folder: Path, original: Base) -> Stage:
    sizes = parse(_Sizes, read_json(folder / _STAGE_NAME), str(folder / _STAGE_NAME))
    pruned, recovered = sizes.pruned, sizes.recovered
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    state = load_file(folder / WEIGHTS_NAME)
    model = model_class(config, pruned).from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    model.generation_config = original.model.generation_config
    model = model.eval().requires_grad_(False).to(original.model.device)
    base = replace(original, model=model, kept=read_kept(folder, pruned))
    factors = read_recovered(folder, recovered) if recovered else {}
    return Stage(base, pruned, recovered, sizes.experts, factors)
