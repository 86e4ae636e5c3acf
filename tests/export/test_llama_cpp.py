"""What is exported as GGUF, run by llama.cpp: logits of the real model, and of every family in small."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from regraft.bypass.directory import read_adapter
from regraft.bypass.lora import LoRA
from regraft.errors import ExportError
from regraft.export.parity import compare, llama_cpp_logits, our_logits, probe
from regraft.export.run import GGUF_TOLERANCE, Export, export_adapter, export_base
from regraft.models.load import load_base
from tests.bypass.test_peft_parity import save_peft
from tests.export.test_export import quantized
from tests.tiny import make_base
from zoo.train import ADAPTERS

pytestmark = pytest.mark.slow

PEERS = Path(__file__).resolve().parents[2] / ".venv-peers"
BASE = "smollm2-135m"
CLOSE = 0.06  # activations in 8 bits; 0.03 is usual


@pytest.fixture(scope="module", autouse=True)
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """llama-cpp-python, installed here or beside us by ``benchmarks/peers/install.sh``; nothing else of those peers."""
    if importlib.util.find_spec("llama_cpp"):
        yield
        return
    found = sorted(PEERS.glob("lib/python*/site-packages/llama_cpp"))
    if not found:
        pytest.skip("llama-cpp-python is not installed: run benchmarks/peers/install.sh")
    folder = tmp_path_factory.mktemp("llama_cpp")
    for name in ("llama_cpp", "diskcache"):
        (folder / name).symlink_to(found[0].parent / name)
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_family(family: str, tmp_path: Path) -> None:
    source = make_base(tmp_path / "base", family, hidden=128, intermediate=256)
    small = quantized(source, tmp_path / "small", bits=8)
    lora = save_peft(source, tmp_path / "lora", target_modules="all-linear")
    for base in (source, small):
        done = export_base(Export(base, tmp_path / f"{base.name}.gguf", "gguf"))
        assert done.parity is not None and done.parity.error < CLOSE
    adapted = export_adapter(Export(source, tmp_path / "lora.gguf", "gguf"), lora)
    assert adapted.parity is not None and adapted.parity.error < CLOSE


@pytest.mark.parametrize("name", ["home", "spam"])
def test_real_model_with_a_zoo_adapter(name: str, tmp_path: Path) -> None:
    done = export_adapter(Export(BASE, tmp_path / "lora.gguf", "gguf"), ADAPTERS / name)
    assert done.parity is not None and done.parity.error < CLOSE and done.parity.same_top > 0.85
    assert done.parity.engine.startswith("llama.cpp")


def test_a_scale_that_is_off_is_noticed(tmp_path: Path) -> None:
    base = load_base(BASE)
    adapter, tokens = read_adapter(ADAPTERS / "home", base), probe(base)
    whole, lora = tmp_path / "base.gguf", tmp_path / "lora.gguf"
    export_base(Export(BASE, whole, "gguf", check=False))
    export_adapter(Export(BASE, lora, "gguf", check=False), ADAPTERS / "home")
    engine, theirs = llama_cpp_logits(whole, base.tokenizer.decode(tokens), tokens, lora)
    compare(our_logits(base, adapter, tokens), theirs, engine, tolerance=GGUF_TOLERANCE)
    doubled = replace(
        adapter, bypasses={slot: [LoRA(o.down, o.up, 2 * o.scale)] for slot, o in adapter.of("lora").items()}
    )
    for wrong in (None, doubled):
        with pytest.raises(ExportError, match="something else"):
            compare(our_logits(base, wrong, tokens), theirs, engine, tolerance=GGUF_TOLERANCE)
