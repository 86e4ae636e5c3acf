"""``compress``: a base and a recipe → a directory with a smaller base."""

from __future__ import annotations

import gc
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

import regraft
from regraft.compress.calibrate import CalibrationText, read_calibration
from regraft.compress.checkpoints import Checkpoints, Stage
from regraft.compress.moefy.settings import Moefy
from regraft.compress.moefy.step import moefy, moved_factors
from regraft.compress.prune.settings import CALIBRATED, Prune
from regraft.compress.prune.step import prune
from regraft.compress.quantize.mixed import fit_widths
from regraft.compress.recipe import Recipe, Recover, SlotPlan, plan_slots
from regraft.compress.recover import recover
from regraft.compress.slots import Packed, round_embeddings, round_slots
from regraft.compress.write import stock_loadable, write_base
from regraft.errors import UsageError
from regraft.evaluate.perplexity import Perplexity, perplexity
from regraft.formats.base_record import BaseRecord, Original, PerplexityRecord, Pruned, Recovered, Sizes
from regraft.formats.kept import write_kept
from regraft.formats.records import RECORD_NAME
from regraft.formats.slots import leaf
from regraft.models.describe import weight_bytes
from regraft.models.fingerprint import fingerprint
from regraft.models.load import Base, load_base, load_compressed
from regraft.models.merged_lora import write_recovered
from regraft.models.slots import slot_shapes
from regraft.progress import Progress, silent
from regraft.storage import check_output, output_directory, write_json

PERPLEXITY_TOKENS = 8192  # enough to tell methods apart, and half a minute on a laptop

# The record of a compressed base is also the report on how it came about.
CompressionReport = BaseRecord


def compress(
    argument: str | Path,
    out: Path,
    recipe: Recipe,
    *,
    text: str | Sequence[str] | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> CompressionReport:
    """Compress a base into the directory ``out``, which appears whole or not at all.

    A call that was killed between two steps of a recipe is taken up again after the last one that it finished.

    What is reported and fingerprinted is the model read back from what was written, not the one in memory.

    Args:
        argument: the base: a directory, a GGUF file or a packaged name.
        out: the directory to make.
        recipe: what to do.
        text: held-out text for the perplexities; None leaves them out.
        overwrite: whether ``out`` may be replaced.
        device: where to compute.
        progress: told of bars and notes.

    Raises:
        UsageError: ``out`` cannot be made, there is no such base, or it is compressed already.
        ConfigError: an override of the recipe fits no slot, or so much cannot be pruned.
        FormatError: the base cannot be read, or holds values that are not finite.
        IncompatibleAdapterError: an adapter that is to be calibrated on is of another base.
        DataError: the calibration text, an adapter's rows or ``text`` cannot be used.

    Cost:
        Memory: the base in float32, what pruning left of it, and its packed copy; with ``gptq`` also the hidden states
        of the calibration text at one layer, and ``in²`` floats for each distinct input of a layer.
    """
    check_output(out, overwrite=overwrite)
    for name, path in (("the base", argument), *(("an adapter", one.adapter) for one in recipe.calibration.adapters)):
        if Path(path).resolve() == out.resolve():
            raise UsageError(f"output {out} is {name} itself", hint="Choose another directory.")
    checkpoints = Checkpoints(out)
    with output_directory(out, overwrite=overwrite) as partial:
        job = _Job(recipe, text, device, progress, checkpoints)
        draft = job.write(argument, partial)
        gc.collect()  # the original is let go before what was written is loaded
        record = job.read_back(partial, draft)
        write_json(partial / RECORD_NAME, record.model_dump(mode="json"))
    checkpoints.remove()  # not on failure: the next call takes up what is there
    return record


class _Job:
    """One compression: its settings, and what it has taken and noted so far."""

    def __init__(
        self,
        recipe: Recipe,
        text: str | Sequence[str] | None,
        device: str,
        progress: Progress,
        checkpoints: Checkpoints,
    ) -> None:
        self.recipe, self.text, self.device, self.progress = recipe, text, device, progress
        self.checkpoints = checkpoints
        self.before: Perplexity | None = None
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Tell the user now, and the record for later."""
        self.notes.append(text)
        self.progress.note(text)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)

    def write(self, argument: str | Path, folder: Path) -> BaseRecord:
        """Load, take the steps and write; the record still lacks the fingerprint and the perplexity."""
        with self.phase("load"):
            base = load_base(argument, device=self.device, progress=self.progress)
        if base.is_compressed:
            raise UsageError(
                f"base {argument} is compressed already",
                expected="an uncompressed base",
                hint="Compress the original with another recipe.",
            )
        self._plan(base)  # an override that fits nothing is found now rather than after the other steps
        text = self._calibration(base)  # so is an adapter that is of another base
        self.before = self._perplexity(base.model, base.tokenizer, "perplexity before")
        stage = self._steps(base, text)
        small = stage.base
        plans = self._plan(small)
        self._note_group_sizes(plans)
        with self.phase("quantize"):
            plans = self._fitted(small, plans, text)
            seen = text.on(small) if text and any(plan.is_calibrated for plan in plans.values()) else None
            packed = round_slots(small, plans, seen, note=self.note, progress=self.progress)
            if self.recipe.quantize is not None and self.recipe.quantize.embeddings == 8:
                round_embeddings(small, packed, self.recipe.quantize.group_size)
        with self.phase("write"):
            num_bytes = write_base(folder, small, packed)
            pruned, recovered = _write_stage(stage, folder)
        loadable, reason = stock_loadable(packed, pruned, stage.experts)
        return BaseRecord(
            regraft_version=regraft.__version__,
            fingerprint="",
            original=Original(name=base.name, fingerprint=base.fingerprint),
            recipe=self.recipe.model_dump(mode="json"),
            sizes=_sizes(base, small, packed, folder, num_bytes),
            slots=packed.slots,
            embeddings=packed.embeddings,
            pruned=pruned,
            recovered=recovered,
            experts=stage.experts,
            calibration=text.record if text else None,
            stock_loadable=loadable,
            stock_loadable_reason=reason,
        )

    def _steps(self, original: Base, text: CalibrationText | None) -> Stage:
        """All steps but the last one that quantises; those that an earlier call has taken are not taken again."""
        steps = [step for step in self.recipe.steps if step.quantize is None]
        names = self.checkpoints.names(original.fingerprint, steps, text.record if text else None)
        done, stage = self.checkpoints.latest(original, names)
        if done:
            self.progress.note(f"going on after step {done}, {steps[done - 1].name}")
        for number, step in enumerate(steps[done:], done):
            with self.phase(step.name):
                if step.prune is not None:
                    stage = self._prune(stage, step.prune, text)
                elif step.recover is not None:
                    folder = self.checkpoints.step_folder(names[number])
                    stage = self._recover(stage, original, step.recover, folder)
                elif step.moefy is not None:
                    stage = self._moefy(stage, step.moefy, text)
            if number + 1 < len(self.recipe.steps):
                self.checkpoints.save(names[number], stage)
        return stage

    def _prune(self, stage: Stage, settings: Prune, text: CalibrationText | None) -> Stage:
        seen = text.on(stage.base) if text else None
        base, pruned = prune(stage.base, settings, seen, before=stage.pruned, progress=self.progress)
        return replace(stage, base=base, pruned=pruned)

    def _recover(self, stage: Stage, original: Base, settings: Recover, folder: Path) -> Stage:
        merged = recover(stage.base, original, settings, folder, note=self.note, progress=self.progress)
        training = merged.state.record
        self.note(f"recovered: {training['dev'][0]:.3f} to {training['best_dev']:.3f} nats per token of its own text")
        recovered = Recovered(rank=settings.rank, text=merged.text, training=training, sha256="")
        return replace(stage, recovered=recovered, factors=merged.factors)

    def _moefy(self, stage: Stage, settings: Moefy, text: CalibrationText | None) -> Stage:
        assert text is not None
        made = moefy(stage.base, settings, text.on(stage.base), before=stage.pruned, progress=self.progress)
        share, best = (sum(layers) / len(layers) for layers in (made.experts.captured, made.experts.best))
        self.note(f"experts: a token's have {share:.0%} of what all neurons add; as many could have {best:.0%}")
        factors = moved_factors(stage.factors, made.local)
        return replace(stage, base=made.base, pruned=made.pruned, experts=made.experts, factors=factors)

    def _plan(self, base: Base) -> dict[str, SlotPlan]:
        widths = {slot: shape[1] for slot, shape in slot_shapes(base.model).items()}
        return plan_slots(self.recipe.quantize, widths)

    def _fitted(self, base: Base, plans: dict[str, SlotPlan], text: CalibrationText | None) -> dict[str, SlotPlan]:
        """Plans with other widths, if the recipe sets a budget."""
        quantize = self.recipe.quantize
        if quantize is None or quantize.target_bytes is None:
            return plans
        assert text is not None
        fitted = fit_widths(
            base,
            plans,
            text.on(base),
            quantize.target_bytes,
            embedding_bits=quantize.embeddings,
            progress=self.progress,
        )
        counts = Counter(plan.bits for plan in fitted.values())
        self.note("slots by bits: " + ", ".join(f"{counts[bits]} of {bits}" for bits in sorted(counts)))
        return fitted

    def read_back(self, folder: Path, draft: BaseRecord) -> BaseRecord:
        """Complete the record from what is on disk."""
        with self.phase("verify"):
            model = load_compressed(folder, draft.pruned).eval().requires_grad_(False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            digest = fingerprint(model, tokenizer)
        after = self._perplexity(model.to(self.device), tokenizer, "perplexity after")
        return draft.model_copy(
            update={
                "fingerprint": digest,
                "perplexity": self._compare(self.before, after),
                "seconds": self.seconds,
                "notes": self.notes,
            }
        )

    def _perplexity(self, model: PreTrainedModel, tokenizer: Any, phase: str) -> Perplexity | None:
        if self.text is None:
            return None
        with self.phase(phase):
            return perplexity(model, tokenizer, self.text, max_tokens=PERPLEXITY_TOKENS, progress=self.progress)

    def _compare(self, before: Perplexity | None, after: Perplexity | None) -> PerplexityRecord | None:
        if self.text is None or before is None or after is None:
            return None
        joined = self.text if isinstance(self.text, str) else "\n\n".join(self.text)
        return PerplexityRecord(
            before=before.value,
            after=after.value,
            text_sha256=hashlib.sha256(joined.encode()).hexdigest(),
            num_tokens=after.num_tokens,
        )

    def _calibration(self, base: Base) -> CalibrationText | None:
        """What some step looks at, if one does: adapters' rows, and text by the base as it is before all steps."""
        quantize = self.recipe.quantize
        looked_at = (quantize is not None and quantize.target_bytes is not None) or any(
            step.moefy is not None or (step.prune is not None and step.prune.importance in CALIBRATED)
            for step in self.recipe.steps
        )
        if not looked_at and not any(plan.is_calibrated for plan in self._plan(base).values()):
            given = [str(one.adapter) for one in self.recipe.calibration.adapters]
            if self.recipe.calibration.source != "self":
                given.insert(0, self.recipe.calibration.source)
            for name in given:
                self.note(f"{name} is not looked at: no step of the recipe is calibrated")
            return None
        with self.phase("calibration text"):
            return read_calibration(base, self.recipe.calibration, self.note, self.progress)

    def _note_group_sizes(self, plans: Mapping[str, SlotPlan]) -> None:
        changed: dict[tuple[int, int], list[str]] = defaultdict(list)
        for slot, plan in plans.items():
            if plan.asked not in (0, plan.group_size) and not plan.is_dense:
                changed[plan.asked, plan.group_size].append(slot)
        for (asked, taken), slots in changed.items():
            kinds = ", ".join(sorted({leaf(slot) for slot in slots}))
            self.note(f"group size {taken} in place of {asked}, which does not divide the rows of {kinds}")


def _write_stage(stage: Stage, folder: Path) -> tuple[Pruned | None, Recovered | None]:
    """Write what is left of the original and what was merged; returns their records with the files' hashes."""
    pruned, recovered = stage.pruned, stage.recovered
    if pruned is not None and stage.base.kept is not None:
        pruned = pruned.model_copy(update={"kept_sha256": write_kept(stage.base.kept, folder)})
    if recovered is not None:
        sha256 = write_recovered(stage.factors, folder, torch.float16)
        recovered = recovered.model_copy(update={"sha256": sha256})
    return pruned, recovered


def _sizes(base: Base, small: Base, packed: Packed, folder: Path, num_bytes: int) -> Sizes:
    return Sizes(
        bytes_before=weight_bytes(base.path),
        bytes_float16=2 * base.model.num_parameters(),
        bytes_after=weight_bytes(folder),
        bits_per_weight=packed.bits_per_weight,
        bits_per_weight_model=8 * num_bytes / small.model.num_parameters(),
    )
