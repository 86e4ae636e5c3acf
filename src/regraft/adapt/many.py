"""All adapters of a folder, carried over to one compressed base: one after the other, or side by side as Ray tasks.

What is there already is left as it is, and one that fails stops no other: the same call goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from regraft.adapt.job import Job
from regraft.adapt.run import run
from regraft.errors import RegraftError, UsageError
from regraft.evaluate.report_card import ReportCard
from regraft.formats.adapter.peft_config import CONFIG_NAME
from regraft.formats.records import RECORD_NAME
from regraft.progress import Progress, silent

_RETRIES = 2  # of a task whose process was killed; its training goes on where it was saved


@dataclass(frozen=True)
class Outcome:
    """What came of one adapter: a card, or an error, or neither if it was there already."""

    name: str
    card: ReportCard | None = None
    error: str | None = None


def jobs_of(adapters: Path, template: Job, rows: Path | None) -> dict[str, Job]:
    """A job for each adapter directory in a folder, by the directory's name.

    Args:
        adapters: the folder.
        template: what is the same for all.
        rows: a folder with ``NAME.jsonl``, or ``NAME/train.jsonl`` and perhaps ``dev.jsonl`` and ``test.jsonl``, for
            each; without it, each teacher writes its own.

    Raises:
        UsageError: there is no adapter, or one without rows.
    """
    if not adapters.is_dir():
        raise UsageError(f"{adapters} is no directory", hint="--all takes a folder of adapter directories.")
    found = sorted({path.parent for name in (CONFIG_NAME, RECORD_NAME) for path in adapters.glob(f"*/{name}")})
    if not found:
        raise UsageError(f"{adapters} has no adapters", expected=f"directories with {CONFIG_NAME} or {RECORD_NAME}")
    return {path.name: replace(template, adapter=str(path), **_rows_of(path.name, rows)) for path in found}


def _rows_of(name: str, rows: Path | None) -> dict[str, Any]:
    if rows is None:
        return {}
    if not rows.is_dir():
        raise UsageError(
            f"{rows} is no directory", hint="With --all, --data has NAME.jsonl or NAME/train.jsonl for each."
        )
    alone, folder = rows / f"{name}.jsonl", rows / name
    if alone.is_file():
        return {"data": alone}
    if not (folder / "train.jsonl").is_file():
        raise UsageError(f"there are no rows for {name}", expected=f"{alone} or {folder / 'train.jsonl'}")
    parts = {"data": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"}
    return {option: folder / file for option, file in parts.items() if (folder / file).is_file()}


def run_all(
    jobs: Mapping[str, Job], out: Path, *, workers: int = 1, overwrite: bool = False, progress: Progress = silent
) -> Iterator[Outcome]:
    """Do jobs, each into a directory of its name, and tell of each as it ends.

    Args:
        jobs: by name.
        out: the folder of the results.
        workers: jobs at once, each a Ray task with its share of this machine's cores; 1 needs no Ray.
        overwrite: do also those whose directory is there.
        progress: told of costs, phases and losses, where one job runs at a time.

    Raises:
        UsageError: a job means nothing, or would destroy what another reads; nothing has been done then.
    """
    for name, job in jobs.items():
        job.check()
        for other in jobs.values():
            other.check_output(out / name)
    is_done = {name: (out / name / RECORD_NAME).exists() and not overwrite for name in jobs}
    yield from (Outcome(name) for name in jobs if is_done[name])
    todo = {name: job for name, job in jobs.items() if not is_done[name]}
    out.mkdir(parents=True, exist_ok=True)
    if workers == 1 or len(todo) < 2:
        for name, job in todo.items():
            progress.note(f"adapter {name}")
            yield _one(name, job, out / name, overwrite, progress)
    else:
        yield from _by_ray(todo, out, min(workers, len(todo)), overwrite)


def _one(name: str, job: Job, out: Path, overwrite: bool, progress: Progress = silent) -> Outcome:
    try:
        return Outcome(name, run(job, out, overwrite=overwrite, progress=progress))
    except RegraftError as error:
        return Outcome(name, error=str(error))


def _by_ray(todo: Mapping[str, Job], out: Path, workers: int, overwrite: bool) -> Iterator[Outcome]:
    import ray

    from regraft.local_ray import started

    threads = max(1, torch.get_num_threads() // workers)
    with started(workers * threads):
        task: Callable[..., ray.ObjectRef] = ray.remote(num_cpus=threads, max_retries=_RETRIES)(_in_task).remote
        waiting = {
            task(threads, name, _absolute(job), (out / name).resolve(), overwrite): name for name, job in todo.items()
        }
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting))
            yield _outcome(waiting.pop(ready), partial(ray.get, ready))


def _outcome(name: str, get: Callable[[], Outcome]) -> Outcome:
    try:
        return get()
    except Exception as error:  # of a task: whatever it was, it is only about this adapter
        return Outcome(name, error=f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")


def _in_task(threads: int, name: str, job: Job, out: Path, overwrite: bool) -> Outcome:
    torch.set_num_threads(threads)
    return _one(name, job, out, overwrite)


def _absolute(job: Job) -> Job:
    """A task runs in a directory of its own."""
    texts = {key: getattr(job, key) for key in ("compressed", "teacher", "adapter")}
    paths = {key: getattr(job, key) for key in ("data", "dev", "test", "prompts", "schema", "shared")}
    found: dict[str, Any] = {key: path.resolve() for key, path in paths.items() if path}
    found |= {key: str(Path(text).resolve()) for key, text in texts.items() if text and Path(text).exists()}
    return replace(job, **found)
