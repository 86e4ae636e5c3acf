"""What the engine's memory budget promises: resident memory is the budget, the weights and ``BESIDE``, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from zoo.train import ADAPTERS

BESIDE = 128 << 20  # libraries, the tokenizer, an adapter's file while it is read, and what a step scribbles on

SERVES = """
import json, os, sys
from pathlib import Path
from regraft import Engine

budget, adapters = int(sys.argv[1]), sorted(path.parent for path in Path(sys.argv[2]).glob("*/adapter_config.json"))
with Engine("smollm2-135m", {path.name: path for path in adapters}, memory_bytes=budget) as engine:
    prompts = [f"{number}: " + "one word and another, " * 100 for number in range(8)]
    asked = [(prompt, path.name) for prompt in prompts for path in adapters]
    for stream in [engine.stream(prompt, name, max_tokens=16) for prompt, name in asked]:
        assert list(stream)[-1].completion.tokens
    pool = engine._loop.scheduler._pool
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    found = {"most": int(status["VmHWM"].split()[0]) << 10, "weights": engine.base.num_bytes}
    print(json.dumps(found | {"filled": pool.peak_used / pool.num_pages, "torch": "torch" in sys.modules}))
"""


@pytest.mark.slow  # the constant is that of a real vocabulary
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("mebibytes", [48, 128])
def test_resident_memory_is_budget_weights_and_a_constant(mebibytes: int) -> None:
    budget = mebibytes << 20
    command = [sys.executable, "-c", SERVES, str(budget), str(ADAPTERS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert not found["torch"]
    assert found["filled"] > 0.9  # else the budget has not been put to the test
    assert found["most"] <= budget + found["weights"] + BESIDE
    assert found["most"] >= 0.9 * budget  # else it is not this memory that was measured
