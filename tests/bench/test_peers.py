"""What benchmarks/engine.py has of its own: files for the peers, the count of bytes, and the talk with a contender."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.engine import Series
from benchmarks.models import TINY_SIZES, random_tinyllama, write_adapters, write_gguf, write_hf
from benchmarks.peers.protocol import Answer, decode_bytes, prompts, serve
from benchmarks.peers.regraft_worker import bits_of
from regraft.bench.workloads import MOST_SEQUENCES, PREFILL_TOKENS, PROMPT_TOKENS, RANK
from regraft.engine.weights.open_base import open_base
from regraft.formats.gguf.file import GgufFile
from regraft.formats.open_weights import open_weights
from regraft.formats.source import locate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config, tensors = random_tinyllama(TINY_SIZES)
    (folder / "hf").mkdir()
    write_hf(folder / "hf", config, tensors)
    write_adapters(folder, config)
    return folder


@pytest.mark.slow  # the vocabulary is that of the packaged model
def test_the_gguf_file_is_the_model_of_the_directory(folder: Path) -> None:
    config = json.loads((folder / "hf" / "config.json").read_text())
    write_gguf(folder / "float16.gguf", config, load_file(folder / "hf" / "model.safetensors"))
    ours, theirs = (open_weights(locate(folder / name)) for name in ("float16.gguf", "hf"))
    assert set(ours) == set(theirs)
    for name in ours:
        assert (ours[name].dense() == theirs[name].dense()).all(), name
    assert bits_of(GgufFile(folder / "float16.gguf")) == {"layers": 16, "head": 16}
    base = open_base(folder / "float16.gguf")
    text = "Once upon a time, there was 1 model"
    assert base.tokenizer.decode(base.tokenizer.encode(text)) == text
    assert base.read_adapter(folder / "adapters" / "lora-0").of("lora")


def test_the_peers_adapters_are_ours(folder: Path) -> None:
    peft = load_file(folder / "adapters" / "lora-1" / "adapter_model.safetensors")
    file = GgufFile(folder / "lora-1.gguf")
    up = peft["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    found = file.bytes_of(file.tensors["blk.1.ffn_up.weight.lora_b"]).view(np.float16)
    assert (found == up).all()
    assert len(file.tensors) == len(peft) == 2 * 7 * TINY_SIZES["num_hidden_layers"]
    assert file.metadata["adapter.lora.alpha"] == 2 * RANK


def test_peers_run_the_same_workloads_as_we_do() -> None:
    from benchmarks.peers import protocol

    ours = (MOST_SEQUENCES, PROMPT_TOKENS - 1, PREFILL_TOKENS, RANK)
    assert ours == (protocol.SEQUENCES, protocol.PROMPT, protocol.PREFILL, protocol.RANK)


def test_a_pass_for_each_sequence_reads_the_weights_each_time() -> None:
    together = decode_bytes(800, [80] * 8, 1, tokens_per_pass=8, steps=3)
    apart = decode_bytes(800, [80], 1, tokens_per_pass=1, steps=3)
    assert (together, apart) == (180 + 130, 880 + 130)


def test_prompts_are_of_random_tokens() -> None:
    made = prompts(1000, 64)
    assert len(made) == 8 and all(len(prompt) == 64 for prompt in made)
    assert len({tuple(prompt) for prompt in made}) == 8 and max(max(prompt) for prompt in made) < 1000


def test_a_contender_says_what_it_is_and_answers_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Echo:
        def facts(self) -> dict[str, Any]:
            return {"version": "1"}

        def run(self, workload: str) -> Answer:
            return Answer(2.0, len(workload), None)

    monkeypatch.setattr(sys, "stdin", io.StringIO('{"run": "load"}\n{"run": "decode-1"}\n'))
    pipe = io.StringIO()
    serve(Echo(), pipe)
    assert [json.loads(line) for line in pipe.getvalue().splitlines()] == [
        {"version": "1"},
        {"seconds": 2.0, "tokens": 4, "bytes_per_token": None},
        {"seconds": 2.0, "tokens": 8, "bytes_per_token": None},
    ]


def test_a_series_gives_medians_and_every_round() -> None:
    answers = [Answer(seconds, 10, 50.0) for seconds in (1.0, 4.0, 2.0)]
    row = Series("peer", "q4_0", "decode-1", answers, [1000.0, 1000.0, 2000.0]).row()
    assert (row["tokens_per_s"], row["roofline_share"], row["variant"]) == (5.0, 0.125, "q4_0")
    assert row["rounds"] == [10.0, 2.5, 5.0]
    load = Series("peer", "q4_0", "load", [Answer(3.0, 0, None)], [1000.0]).row()
    assert (load["tokens_per_s"], load["seconds"], load["rounds"]) == (None, 3.0, [3.0])
