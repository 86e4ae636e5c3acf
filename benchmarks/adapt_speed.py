"""Tokens per second of ``adapt``, teacher included, against the same job in PEFT and the HF Trainer without a teacher.

``python -m benchmarks.adapt_speed`` → ``results/adapt_speed.json``. Both train a bypass of rank 8 on every linear of
SmolLM2-135M, on the same rows, for the same number of distinct and of repeated tokens; rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from regraft.adapt.config import AdaptConfig
from regraft.adapt.student import make_student
from regraft.bypass.directory import read_adapter
from regraft.config import parse
from regraft.evaluate.dataset import encode, read_examples
from regraft.models.load import load_base
from regraft.storage import write_json
from regraft.train.batches import Row
from regraft.train.teacher import Teacher, teach
from regraft.train.trainer import Trainer as OurTrainer
from zoo.prepare import prepare
from zoo.train import ADAPTERS

BASE, TASK = "smollm2-135m", "home"
RESULTS = Path(__file__).resolve().parent / "results" / "adapt_speed.json"
ROWS, EPOCHS, BATCH = 96, 3, 16


def rows_of(tokenizer: Any) -> list[Row]:
    """The first training rows of the task."""
    examples = read_examples(prepare(TASK) / "train.jsonl")[:ROWS]
    return [Row.of(encode(example, tokenizer)) for example in examples]


def ours(rows: list[Row], gradients: str) -> float:
    """Seconds of the teacher's pass and of training; loading and the closed form are not counted, nor is PEFT's."""
    base = load_base(BASE)
    tokens = EPOCHS * sum(len(row.ids) for row in rows)
    config = parse(
        AdaptConfig,
        {
            "recover": {"kind": "linear", "start": "zero"},
            "train": {"tokens": tokens, "batch_tokens": BATCH * 52, "evaluations": 1, "gradients": gradients},
        },
        "benchmark",
    )
    teacher = Teacher(base, read_adapter(ADAPTERS / TASK, base))
    student = make_student(base, teacher.adapter, config)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        targets = teach(teacher, rows, Path(folder))
        OurTrainer(base, student, config, rows, rows[:1], targets, Path(folder)).run()
        return time.perf_counter() - start


def theirs(rows: list[Row]) -> float:
    """Seconds of ``Trainer.train`` with its defaults, answers only in the loss, rows grouped by length."""
    base = load_base(BASE)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base.model, config)
    data = [
        {
            "input_ids": row.ids,
            "attention_mask": [1] * len(row.ids),
            "labels": [-100] * (len(row.ids) - row.num_answer) + row.ids[-row.num_answer :],
        }
        for row in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            train_sampling_strategy="group_by_length",
        )
        collator = DataCollatorForSeq2Seq(base.tokenizer, padding=True)
        trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


def main() -> None:
    """Interleave the contenders and write medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = rows_of(load_base(BASE).tokenizer)
    tokens = EPOCHS * sum(len(row.ids) for row in rows)
    contenders = {
        "regraft": lambda: ours(rows, "float"),
        "regraft, 8-bit gradients": lambda: ours(rows, "int8"),
        "PEFT + HF Trainer": lambda: theirs(rows),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(args.rounds):
        for name, run in contenders.items():
            rates[name].append(tokens / run())
            print(number, name, f"{rates[name][-1]:.1f} tokens/s", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    result = {
        "tokens": tokens,
        "rows": ROWS,
        "epochs": EPOCHS,
        "tokens_per_s": rates,
        "median": medians,
        "ratio": {name: rate / medians["PEFT + HF Trainer"] for name, rate in medians.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, result)
    print(json.dumps(result["ratio"], indent=2))


if __name__ == "__main__":
    main()
