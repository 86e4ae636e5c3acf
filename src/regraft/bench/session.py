"""The workloads on an engine, as a caller of :class:`regraft.engine.engine.Engine` would run them.

Times are from the first call to the last piece of text: scheduler, sampler, detokenizer and queues are in them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from time import perf_counter

from regraft.bench.adapters import write_lora, write_recovered
from regraft.bench.prompts import make_prompt
from regraft.bench.traffic import decode_bytes, prefill_bytes
from regraft.bench.workloads import (
    MOST_SEQUENCES,
    PREFILL_TOKENS,
    PROMPT_TOKENS,
    RANK,
    RECOVERY_RANK,
    WORKLOADS,
    Workload,
)
from regraft.engine.engine import Engine
from regraft.engine.schedule.limits import Limits
from regraft.progress import Progress, silent

_STAND_IN = "0" * 64  # for a base that has no fingerprint, since no adapter was ever adapted to it


@dataclass(frozen=True)
class Timing:
    """What one run of a workload took; ``tokens`` is 0 where it makes none."""

    seconds: float
    tokens: int


class Session:
    """A base, opened once, with random adapters in a folder.

    Args:
        base: a BASE argument, as of the command line.
        folder: where the adapters are written.
        memory_bytes: of the engine.
        threads: of the engine; by default one per core.
        steps: tokens that each sequence decodes.
        progress: told of a first packing.

    Raises:
        UsageError, FormatError: see :class:`regraft.engine.engine.Engine`.
    """

    def __init__(
        self,
        base: str | Path,
        folder: Path,
        *,
        memory_bytes: int = 1 << 30,
        threads: int | None = None,
        steps: int = 64,
        progress: Progress = silent,
    ) -> None:
        self._open = lambda: Engine(base, memory_bytes=memory_bytes, threads=threads, progress=progress)
        self.engine, self._steps = self._open(), steps
        if self.engine.base.fingerprint is None:
            self.engine.base = replace(self.engine.base, fingerprint=_STAND_IN)
        self._lora = folder / "lora 0"
        self._write_adapters(folder)
        tokenizer = self.engine.base.tokenizer
        self._prompts = [make_prompt(tokenizer, PROMPT_TOKENS, seed) for seed in range(MOST_SEQUENCES)]
        self._fresh = count(MOST_SEQUENCES)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def run(self, name: str) -> Timing:
        """Run a workload once.

        Raises:
            CapacityError: the memory is too small for it.
        """
        workload = WORKLOADS[name]
        if workload.kind == "decode":
            return self._decode(workload)
        if workload.kind == "prefill":
            return self._prefill()
        return self._load() if workload.kind == "load" else self._adapter()

    def bytes_per_token(self, name: str) -> float | None:
        """What a token of a workload reads from memory, once the workload has been run; None where it makes none."""
        workload, base = WORKLOADS[name], self.engine.base
        if workload.kind == "prefill":
            return prefill_bytes(base.model, base.architecture, tokens=PREFILL_TOKENS, step_tokens=Limits.step_tokens)
        if workload.kind != "decode":
            return None
        sizes = self.engine.stats().adapter_bytes
        return decode_bytes(
            base.model,
            base.architecture,
            adapters=[sizes[adapter] for adapter in _adapters(workload) if adapter is not None],
            sequences=workload.sequences,
            prompt=PROMPT_TOKENS,
            steps=self._steps,
        )

    def _write_adapters(self, folder: Path) -> None:
        base = self.engine.base
        assert base.fingerprint is not None
        for seed in range(MOST_SEQUENCES):
            lora = write_lora(folder / f"lora {seed}", base.adapter_shapes, rank=RANK, seed=seed)
            recovered = write_recovered(
                folder / f"recovery {seed}",
                base.slot_shapes,
                rank=RANK,
                recovery_rank=RECOVERY_RANK,
                seed=seed,
                fingerprint=base.fingerprint,
            )
            self.engine.add_adapter(lora.name, lora)
            self.engine.add_adapter(recovered.name, recovered)

    def _decode(self, workload: Workload) -> Timing:
        asked = list(zip(self._prompts, _adapters(workload), strict=False))
        for prompt, adapter in asked:  # what comes before the first token is not what is measured
            self.engine.generate(prompt, adapter, max_tokens=1)
        start = perf_counter()
        streams = [
            self.engine.stream(prompt, adapter, max_tokens=self._steps, stop_token_ids=()) for prompt, adapter in asked
        ]
        ends = [list(pieces)[-1].completion for pieces in streams]
        seconds = perf_counter() - start
        return Timing(seconds, sum(len(end.tokens) for end in ends if end is not None))

    def _prefill(self) -> Timing:
        prompt = make_prompt(self.engine.base.tokenizer, PREFILL_TOKENS, next(self._fresh))
        start = perf_counter()
        completion = self.engine.generate(prompt, max_tokens=1)
        return Timing(perf_counter() - start, completion.num_prompt_tokens)

    def _load(self) -> Timing:
        start = perf_counter()
        engine = self._open()
        seconds = perf_counter() - start
        engine.close()
        return Timing(seconds, 0)

    def _adapter(self) -> Timing:
        """A new name for an adapter whose keys and values of the prompt are in the prefix cache: only it is read."""
        prompt, resident, fresh = self._prompts[0], self._lora.name, f"fresh {next(self._fresh)}"
        self.engine.generate(prompt, resident, max_tokens=1)
        start = perf_counter()
        self.engine.generate(prompt, resident, max_tokens=1)
        middle = perf_counter()
        self.engine.add_adapter(fresh, self._lora)
        self.engine.generate(prompt, fresh, max_tokens=1)
        return Timing(max(0.0, (perf_counter() - middle) - (middle - start)), 0)


def _adapters(workload: Workload) -> list[str | None]:
    """The name of the adapter of each sequence."""
    if workload.adapters == "none":
        return [None] * workload.sequences
    return [f"{workload.adapters} {number}" for number in range(workload.sequences)]
