"""Tiny random models of every named family, with a real (tiny) tokenizer, on disk in a few milliseconds."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

FAMILIES = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma3": Gemma3TextConfig,
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def make_tokenizer() -> Any:
    """A byte-level BPE of 400 tokens with chat markers and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["the quick brown fox jumps over the lazy dog", '{"number": "12", "street": "Main"}', "positive negative"]
    tokenizer.train_from_iterator(words * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(
    family: str = "llama",
    *,
    seed: int = 0,
    hidden: int = 64,
    intermediate: int = 128,
    layers: int = 2,
    tie: bool = True,
    positions: int = 512,
) -> PreTrainedModel:
    """A random causal LM: ``hidden`` wide, 4 heads over 2 KV heads, weights large enough to matter."""
    sizes = {
        "vocab_size": len(make_tokenizer()),
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tie,
        "initializer_range": 0.08,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(FAMILIES[family](**sizes)).eval()


def make_base(folder: Path, family: str = "llama", **options: Any) -> Path:
    """Write a tiny model and its tokenizer to ``folder`` as a Hugging Face directory; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(family, **options).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
