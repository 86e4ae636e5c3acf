"""How much of an adapter each way of carrying it over keeps: ``python -m benchmarks.recovery``.

Reads ``recovery.yaml``, appends one JSON line per finished arm to ``results/recovery.jsonl``, and skips what is there:
a stopped sweep is taken up by the same command, and several of them may run at once. Learning rates are chosen on dev
rows by short runs; the test rows of a cell and arm are read once, with the chosen rate. ``--plan`` says the price.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import yaml

from benchmarks.bases import claim
from benchmarks.cell import Cell
from benchmarks.price import Price, Speeds, probe, told
from benchmarks.sweep import Run, Sweep
from regraft.errors import RegraftError

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "recovery.jsonl"
WAIT_S = 10


def sweep_on(sweep: Sweep, recipes: list[str] | None, end: float) -> None:
    """Run what is missing until it is done, or until no further run may start."""
    cell: Cell | None = None
    while time.monotonic() < end:
        wanted = [run for run in sweep.open if not recipes or run.recipe in recipes]
        if not wanted:
            return
        ready = [run for run in wanted if sweep.is_ready(run)]
        if cell is not None:  # the order stays, but what can be done without loading anything comes first
            here = cell.recipe, cell.task
            ready.sort(key=lambda run: (run.recipe, run.task) != here)
        for run in ready:
            with claim(str(run)) as mine:
                if not mine or run in sweep.done:
                    continue
                cell = _at(cell, sweep, run)
                sweep.record(run, cell.run(sweep, run))
                break
        else:
            time.sleep(WAIT_S)  # what is left waits for, or belongs to, another process


def _at(cell: Cell | None, sweep: Sweep, run: Run) -> Cell:
    if cell is not None and (cell.recipe, cell.task) == (run.recipe, run.task):
        return cell
    cell = None  # two models in float32: let go of them before the next ones are read
    return Cell(sweep, run.recipe, run.task)


def main() -> None:
    """Run what is missing, list it, or say what it costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say what is missing, and stop")
    parser.add_argument("--plan", action="store_true", help="say what is missing would cost, and stop")
    parser.add_argument("--sweep", type=Path, default=HERE / "recovery.yaml", help="rows, arms and rates")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--recipes", nargs="*", default=None, help="only these bases")
    parser.add_argument("--minutes", type=float, default=None, help="start no further run after so many")
    args = parser.parse_args()
    try:
        sweep = Sweep(yaml.safe_load(args.sweep.read_text()), args.results)
        if args.list:
            print("\n".join(map(str, sweep.open)))
            return
        speeds = Speeds.of(sweep.lines)
        if args.plan:
            if not speeds.is_known:
                speeds = replace(speeds, probed=probe(sweep.plan["select"]["task"]))
            print("\n".join(told(sweep, speeds)))
            return
        hours = f"{Price(sweep, speeds).hours(sweep.open):.1f} h" if speeds.is_known else "a time that --plan tells"
        print(f"{len(sweep.open)} runs are missing: {hours}", file=sys.stderr)
        sweep_on(sweep, args.recipes, time.monotonic() + 60 * (args.minutes or 1e9))
    except RegraftError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


if __name__ == "__main__":
    main()
