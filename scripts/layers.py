"""Print the layers of the package: ``python scripts/layers.py``.

A room's layer is the length of the longest chain of imports below it, so an import can only run up in a circle. Exits
with 1 if there is one, or if a file has more lines than ``MOST_LINES``. The order that layers ought to have stands in
``pyproject.toml``; ``make check`` holds the imports against it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import grimp

PACKAGE = "regraft"
ROOT = Path(__file__).resolve().parent.parent / "src" / PACKAGE
MOST_LINES = 400
INNER = ("engine", "formats", "server")  # packages with folders inside


def room_of(module: str) -> str:
    """The folder that a module lies in; files beside the inner folders of ``INNER`` are rooms of their own."""
    parts = module.split(".")[1:]
    depth = 2 if parts and parts[0] in INNER else 1
    return ".".join(parts[:depth]) or PACKAGE


def arrows() -> dict[str, set[str]]:
    """Room → the rooms that it imports."""
    graph = grimp.build_graph(PACKAGE)
    found: dict[str, set[str]] = defaultdict(set)
    for module in graph.modules:
        room = room_of(module)
        found[room] |= {room_of(other) for other in graph.find_modules_directly_imported_by(module)} - {room, PACKAGE}
    for room in [PACKAGE, *INNER]:  # their own files only name what is inside
        found.pop(room, None)
    return {room: others - {*INNER} for room, others in found.items()}


def layers(imports: dict[str, set[str]]) -> dict[str, int]:
    """Room → its layer.

    Raises:
        SystemExit: some rooms import each other.
    """
    heights: dict[str, int] = {}
    while len(heights) < len(imports):
        ready = [room for room in imports if room not in heights and imports[room] <= heights.keys()]
        if not ready:
            left = sorted(imports.keys() - heights.keys())
            sys.exit(f"a circle of imports among {', '.join(left)}")
        heights |= {room: 1 + max((heights[other] for other in imports[room]), default=-1) for room in ready}
    return heights


def main() -> None:
    """Print layers from the top, then long files."""
    imports = arrows()
    heights = layers(imports)
    for height in sorted(set(heights.values()), reverse=True):
        print(f"{height:3}  {'  '.join(sorted(room for room in heights if heights[room] == height))}")
    print(f"{sum(map(len, imports.values()))} arrows between {len(imports)} rooms, none of them up")
    long = {path: len(path.read_text().splitlines()) for path in sorted(ROOT.rglob("*.py"))}
    for path, lines in long.items():
        if lines > MOST_LINES:
            print(f"{path.relative_to(ROOT)}: {lines} lines, at most {MOST_LINES}")
    sys.exit(any(lines > MOST_LINES for lines in long.values()))


if __name__ == "__main__":
    main()
