"""The bases of :mod:`benchmarks.recovery`, made on first use.

original            the packaged base as it is
NAME                a recipe of the package or of the zoo
NAME+calibrated     the same, calibrated on the sweep's tasks with their adapters (``regraft compress --calibrate-on``)
NAME+bytes          the same with more bits, so that it is as large as NAME with a recovery bypass beside it
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from regraft.compress.recipe import AdapterRows, Recipe, load_recipe, with_options
from regraft.compress.run import compress
from regraft.engine.weights.open_base import open_base
from zoo.prepare import ROOT, prepare
from zoo.train import ADAPTERS

BASE = "smollm2-135m"
ORIGINAL = "original"
CALIBRATED, BYTES = "+calibrated", "+bytes"
WORK = ROOT / "data" / "recovery"
MOST_BITS = 8  # of a slot, where the budget is of bytes
FLOAT16 = 2


@contextmanager
def claim(name: str, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone has ``name``; the claim ends with the process, however it ends."""
    path = WORK / "claims" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def folder_of(name: str) -> Path:
    """Where a base lies, or will."""
    return WORK / "bases" / name


def make_base(name: str, *, tasks: Sequence[str], rank: int) -> str:
    """The BASE argument of a base.

    Args:
        name: see above.
        tasks: what a ``+calibrated`` one is calibrated on.
        rank: of the recovery that a ``+bytes`` one is as large as.
    """
    if name == ORIGINAL:
        return BASE
    folder = folder_of(name)
    with claim(f"base-{name}", wait=True):
        if not folder.exists():
            report = compress(BASE, folder, recipe_of(name, tasks=tasks, rank=rank))
            print(json.dumps({"recipe": name, "sizes": report.sizes.model_dump()}), flush=True)
    return str(folder)


def recipe_of(name: str, *, tasks: Sequence[str], rank: int) -> Recipe:
    """The recipe of a base; that of a ``+bytes`` one needs the base that it is compared with."""
    plain = name.removesuffix(CALIBRATED).removesuffix(BYTES)
    own = ROOT / "zoo" / "recipes" / f"{plain}.yaml"
    recipe = load_recipe(str(own) if own.exists() else plain)
    if name.endswith(CALIBRATED):
        rows = [AdapterRows(adapter=ADAPTERS / task, data=prepare(task) / "train.jsonl") for task in tasks]
        return with_options(recipe, adapters=rows)
    if name.endswith(BYTES):
        beside = Path(make_base(plain, tasks=tasks, rank=rank))
        return with_bytes(recipe, weight_bytes(beside) + recovery_bytes(beside, rank))
    return recipe


def with_bytes(recipe: Recipe, target_bytes: int) -> Recipe:
    """The recipe with as many bits for each slot as the budget allows, wherever they save most."""
    budgeted = with_options(recipe, target_bytes=target_bytes)
    *before, last = budgeted.steps
    assert last.quantize is not None
    wider = last.model_copy(update={"quantize": last.quantize.model_copy(update={"bits": MOST_BITS})})
    return budgeted.model_copy(update={"steps": (*before, wider)})


def weight_bytes(base: Path) -> int:
    """Of a base's weights on disk."""
    return sum(file.stat().st_size for file in base.glob("*.safetensors"))


def recovery_bytes(base: Path, rank: int) -> int:
    """Of a linear recovery on every slot, as an adapter's directory holds it."""
    return FLOAT16 * rank * sum(out + width for out, width in open_base(base).slot_shapes.values())
