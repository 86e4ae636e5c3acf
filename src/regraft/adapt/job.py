"""A job of ``adapt``, as the command line asks for it, and checks that it makes sense."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from regraft.adapt.config import AdaptConfig, idle_settings
from regraft.config import suggest
from regraft.errors import UsageError
from regraft.evaluate.metrics import METRICS


@dataclass(frozen=True)
class Job:
    """What the command line asks for; every path as the user gave it."""

    compressed: str
    teacher: str
    adapter: str | None = None
    data: Path | None = None
    dev: Path | None = None
    test: Path | None = None
    prompts: Path | None = None
    metric: str = "exact"
    schema: Path | None = None
    shared: Path | None = None
    config: AdaptConfig = field(default_factory=AdaptConfig)
    device: str = "cpu"

    def check(self) -> None:
        """Raise for options that are at odds, before anything is loaded.

        Raises:
            UsageError: see the messages.
        """
        if self.data and self.prompts:
            raise UsageError("--data and --prompts are both given", hint="Leave one out.")
        if (self.dev or self.test) and not self.data:
            raise UsageError("--dev and --test go with --data")
        if self.schema and not self.data:
            raise UsageError("--schema goes with --data")
        if self.config.inherit.start == "new" and self.adapter is None:
            raise UsageError("inherit.start: new needs an --adapter to take its ranks from")
        if self.config.recover.kind == "none" and self.adapter is None:
            raise UsageError("there is nothing to train", hint="Give --adapter, or a recover.kind other than none.")
        if self.shared and self.config.recover.kind == "none":
            raise UsageError("--shared is a recovery, but recover.kind is none")
        if self.metric not in METRICS:
            raise UsageError(f"unknown metric {self.metric!r}", hint=suggest(self.metric, METRICS))
        self._check_settings()

    def _check_settings(self) -> None:
        """Raise for settings that would be ignored, or leave nothing to do."""
        train, recover, inherit = self.config.train, self.config.recover, self.config.inherit
        for name, reason in idle_settings(self.config, shared=self.shared is not None).items():
            raise UsageError(f"{name} has no effect: {reason}", hint="Leave it out.")
        computed = recover.kind != "none" and recover.start != "zero" and not self.shared
        if computed and recover.kind == "gelu" and recover.rank % 2:
            raise UsageError(
                f"recover.rank {recover.rank} is odd, but a GELU recovery needs a pair of neurons for each linear one",
                hint="Give an even rank, or recover.start: zero.",
            )
        if train.tokens == 0 and inherit.start == "new":
            raise UsageError("a new LoRA needs training, but train.tokens is 0")
        if train.tokens == 0 and not computed and not (self.shared and self.adapter):
            raise UsageError("there is nothing to do: train.tokens is 0, and no closed form is asked for")
        if train.tokens and not (self.config.distil.needs_teacher or self.config.distil.answers):
            raise UsageError("there is nothing to learn: distil.hidden, distil.logits and distil.answers are all 0")
        if train.gradients == "int8" and self.device != "cpu":
            raise UsageError(f"train.gradients: int8 runs on the CPU only, not on {self.device}")

    def check_output(self, out: Path) -> None:
        """Raise if replacing ``out`` would destroy what the job reads.

        Raises:
            UsageError: an input is ``out`` itself, or lies in it.
        """
        inputs = (
            self.compressed,
            self.teacher,
            self.adapter,
            self.shared,
            self.data,
            self.dev,
            self.test,
            self.prompts,
            self.schema,
        )
        for path in (Path(given).resolve() for given in inputs if given is not None):
            if out.resolve() in (path, *path.parents):
                raise UsageError(f"output {out} holds an input, {path.name}", hint="Choose another directory.")
