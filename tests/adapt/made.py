"""What several tests of adapting share: where the tiny base, its compressed form, a LoRA and data lie."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.models.load import Base, load_base
from tests.tiny import make_base


@dataclass(frozen=True)
class Made:
    """Read-only paths; tests write to their own ``tmp_path``."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def small(self) -> Path:
        return self.root / "small"

    @property
    def lora(self) -> Path:
        return self.root / "lora"

    @property
    def data(self) -> Path:
        return self.root / "data.jsonl"


def make_all(root: Path) -> Made:
    made = Made(root)
    make_base(made.base)
    recipe = parse(Recipe, {"steps": [{"quantize": {"method": "rtn", "bits": 3, "group_size": 32}}]}, "test")
    compress(made.base, made.small, recipe)
    make_lora(made.lora, made.base)
    write_rows(made.data, 40)
    return made


def make_lora(folder: Path, base: Path, *, seed: int = 0, rank: int = 2, alpha: int = 8) -> Path:
    """A PEFT LoRA that covers few slots and acts strongly."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=["q_proj", "down_proj"],
        layers_to_transform=[1],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    get_peft_model(load_base(base).model, config).save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int, start: int = 0) -> Path:
    rows = [{"prompt": f"the quick {n}", "completion": f" fox {n % 3}"} for n in range(start, start + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextmanager
def counted_forwards(base: Base) -> Iterator[list[int]]:
    """A list that grows by one with each pass through the decoder."""
    calls: list[int] = []
    handle = base.model.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


@dataclass
class Listener:
    """A progress that keeps the notes, and may call something at each step of a phase."""

    phase: str = "adapt"
    at_step: Callable[[int], None] | None = None
    notes: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def track(self, total: int, label: str) -> Iterator[Any]:
        self.phases.append(label)
        steps = 0

        def advance(n: int = 1, **fields: object) -> None:
            nonlocal steps
            steps += 1
            if self.at_step and label == self.phase:
                self.at_step(steps)

        yield advance


def stop_at(step: int) -> Callable[[int], None]:
    """Interrupt as a user does, at one step."""

    def check(now: int) -> None:
        if now == step:
            raise KeyboardInterrupt

    return check
