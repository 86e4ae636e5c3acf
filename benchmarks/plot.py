"""Draw ``docs/lift_kept.svg``: bytes on disk against the lift that is kept: ``python -m benchmarks.plot``.

A recipe whose size or main arms are not measured yet is left out.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from benchmarks.kept import comparisons, judged_lines
from benchmarks.lines import HERE, compression

OUT = HERE.parent / "docs" / "lift_kept.svg"
SAME_LAYOUT = {"int3-hqq": "int3"}  # both are 3-bit codes with a scale per 64: other values, the same bytes
# Colours and greys that can be read on white and on GitHub's dark background alike; the file has no background.
ARMS = {
    "plugged_in": ("plugged in, as it is", "#e5534b", "X"),
    "closed_form": ("inherited + EoRA, no training", "#c69026", "s"),
    "ca_lora_linear": ("CA-LoRA, linear recovery from EoRA", "#2f81f7", "o"),
}
GREY = "#808a94"
# Where a point's name may stand: points to the right and up, and how it is aligned there.
SIDES = [(8, -3, "left"), (-8, -3, "right"), (0, 8, "center"), (0, -15, "center"), (6, 6, "left"), (-6, 6, "right")]
SIDES += [(6, -13, "left"), (-6, -13, "right"), (0, 19, "center"), (0, -26, "center")]


@dataclass(frozen=True)
class Point:
    """One recipe and way: megabytes of base and adapter, per cent of the lift, with the ends of its interval."""

    recipe: str
    arm: str
    megabytes: float
    kept: float
    low: float
    high: float


def points() -> list[Point]:
    """All that is measured."""
    sizes, found = compression("quality"), []
    for recipe in dict.fromkeys(line["recipe"] for line in judged_lines()):
        layout = recipe if recipe in sizes else SAME_LAYOUT.get(recipe, "")
        for comparison in comparisons(recipe)[:1] if layout in sizes else []:
            for arm in filter(comparison.ways.__contains__, ARMS):
                megabytes = (sizes[layout]["bytes_after"] + comparison.mean(arm, "bytes")) / 1e6
                if (kept := comparison.lift_kept(arm)) is not None:
                    shares = (100 * share for share in (kept.value, *kept.ci95))
                    found.append(Point(recipe, arm, megabytes, *shares))
    return found


def draw(found: list[Point]) -> Figure:
    """The figure."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    for recipe in dict.fromkeys(point.recipe for point in found):
        path = [point for point in found if point.recipe == recipe]
        axes.plot([p.megabytes for p in path], [p.kept for p in path], color=GREY, linewidth=0.8, alpha=0.6, zorder=1)
    for arm, (label, colour, marker) in ARMS.items():
        ours = [point for point in found if point.arm == arm]
        x, y = [point.megabytes for point in ours], [point.kept for point in ours]
        axes.vlines(x, [p.low for p in ours], [p.high for p in ours], colors=colour, linewidth=1, zorder=1)
        axes.scatter(x, y, s=55, color=colour, marker=marker, label=label, zorder=2, clip_on=False)
    figure.legend(frameon=False, labelcolor=GREY, loc="outside upper left", ncols=3, handletextpad=0.2)
    axes.margins(x=0.12)
    _label(figure, axes, found)
    return figure


def _style(axes: Axes) -> None:
    axes.set_xlabel("megabytes on disk, base and one adapter", color=GREY)
    axes.set_ylabel("mean lift kept, per cent: 0 is the baseline, 100 the teacher", color=GREY)
    axes.tick_params(colors=GREY)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    axes.axhline(100, color=GREY, linewidth=1, linestyle="--")
    place, above = (0, 100), ("axes fraction", "data")
    axes.annotate(_teacher(), place, (2, 4), above, textcoords="offset points", color=GREY, fontsize=9)
    axes.set_axisbelow(True)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_ylim(-12, 112)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _teacher() -> str:
    sizes = [line["bytes_float16"] for line in compression("quality").values()]
    return f"uncompressed: {sizes[0] / 1e6:.0f} MB in 16 bits" if sizes else "uncompressed"


def _label(figure: Figure, axes: Axes, found: list[Point]) -> None:
    """Name each point's recipe on the first side where it covers no point, no other text and not the teacher's line."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is placed by pixels stays where it is
    places = [axes.transData.transform((point.megabytes, point.kept)) for point in found]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    teacher = axes.transData.transform((0, 100))[1]
    taken.append(Bbox.from_extents(axes.bbox.x0, teacher - 1, axes.bbox.x1, teacher + 1))
    taken += [text.get_window_extent() for text in axes.texts]
    for point in found:
        for side in SIDES:
            name = _named(axes, point, side)
            box = name.get_window_extent()
            if side == SIDES[-1] or not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            name.remove()


def _named(axes: Axes, point: Point, side: tuple[int, int, str]) -> Annotation:
    x, y, alignment = side
    place = (point.megabytes, point.kept)
    colour = ARMS[point.arm][1]
    return axes.annotate(
        point.recipe, place, (x, y), textcoords="offset points", ha=alignment, color=colour, fontsize=9
    )


def main() -> None:
    """Draw what is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=OUT, help="svg or png; default: docs/lift_kept.svg")
    out = parser.parse_args().out
    matplotlib.rcParams["svg.hashsalt"] = "regraft"  # with it, and without a date, the same results give the same file
    draw(points()).savefig(out, transparent=True, metadata={"Date": None} if out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
