"""Answers by plain greedy decoding, in batches, for evaluation.

They go by the model's logits alone. Penalties and the like that a model's ``generation_config`` asks for are left out,
but its end-of-sequence tokens are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from regraft.evaluate.answers import BATCH, longest_answer
from regraft.evaluate.dataset import Encoded
from regraft.progress import Progress, silent


def generate(
    model: PreTrainedModel,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    *,
    max_new_tokens: int | None = None,
    batch_size: int = BATCH,
    progress: Progress = silent,
) -> list[str]:
    """Answer every prompt greedily.

    Args:
        model: a causal LM in eval mode.
        tokenizer: its tokenizer.
        encoded: the prompts; the answers serve only to tell how long an answer may be.
        max_new_tokens: where an answer is cut; default :func:`regraft.evaluate.answers.longest_answer`.
        batch_size: prompts that run together, those of like length side by side; no answer depends on it, but for
            rounding.
        progress: counts answers.

    Returns:
        The answers in the order of ``encoded``, without special tokens, white space as generated.
    """
    limit = longest_answer(encoded) if max_new_tokens is None else max_new_tokens
    order = sorted(range(len(encoded)), key=lambda number: len(encoded[number].prompt_ids), reverse=True)
    answers = [""] * len(encoded)
    with progress.track(len(encoded), "answers") as advance:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            batch = _generate_batch(model, tokenizer, [encoded[number].prompt_ids for number in numbers], limit)
            for number, answer in zip(numbers, batch, strict=True):
                answers[number] = answer
            advance(len(numbers))
    return answers


def stop_ids(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and the model's own (an instruct model may have several)."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    ids = own if isinstance(own, list) else [own]
    return sorted({int(token) for token in (tokenizer.eos_token_id, *ids) if token is not None})


@torch.no_grad()
def _generate_batch(model: PreTrainedModel, tokenizer: Any, prompts: Sequence[list[int]], limit: int) -> list[str]:
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)  # [B, S], padded on the left; any id will do under a mask
    mask = torch.zeros_like(ids)
    for place, prompt in enumerate(prompts):
        ids[place, width - len(prompt) :] = torch.tensor(prompt)
        mask[place, width - len(prompt) :] = 1
    stops = stop_ids(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=limit,
        do_sample=False,
        num_beams=1,
        # What is None here, transformers takes from the model's own configuration.
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
    )
    output = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
    )
    return [_text(tokenizer, _until(row, set(stops))) for row in output[:, width:].tolist()]


def _until(tokens: list[int], stops: set[int]) -> list[int]:
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


def _text(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
