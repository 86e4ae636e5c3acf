"""Choice between engine and torch for answers: the engine wherever it can, since it is what serves."""

from __future__ import annotations

from typing import Literal

from regraft.errors import UnsupportedBaseError, UsageError
from regraft.evaluate.answers import BATCH, Answers
from regraft.evaluate.engine_answers import EngineAnswers
from regraft.progress import Progress, silent

Choice = Literal["auto", "engine", "torch"]


def open_answers(
    base: str, runtime: Choice = "auto", *, device: str = "cpu", batch_size: int = BATCH, progress: Progress = silent
) -> Answers:
    """Open a BASE argument for answering.

    Args:
        base: see ``regraft eval --help``.
        runtime: ``auto`` is the engine, or torch where the engine does not run the base or the device is not the CPU.
        device: torch's.
        batch_size: prompts that are answered side by side.
        progress: told of packing, and of why torch answers.

    Raises:
        UsageError: there is no such base; or the engine on another device than the CPU.
        FormatError: a file is missing or damaged, or the engine is asked for and does not run this kind of base.
    """
    if runtime == "engine" and device != "cpu":
        raise UsageError(f"the engine runs on the CPU, not on {device}", hint="Leave out --device, or --runtime.")
    if runtime != "torch" and device == "cpu":
        try:
            return EngineAnswers(base, batch_size=batch_size, progress=progress)
        except UnsupportedBaseError as error:
            if runtime == "engine":
                raise
            progress.note(f"torch answers, as the engine does not run {base}: {error}")
    from regraft.evaluate.torch_answers import TorchAnswers
    from regraft.models.load import load_base

    return TorchAnswers(load_base(base, device=device, progress=progress), batch_size=batch_size)
