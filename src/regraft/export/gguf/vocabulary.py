"""A base's tokenizer as GGUF says it: that of a GGUF file as it stands there, any other if it is a byte-level BPE."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gguf

from regraft.errors import ExportError
from regraft.formats.gguf.file import GgufFile
from regraft.formats.gguf.tokenizer import CONTROL, USER_DEFINED, split_name
from regraft.formats.source import Kind, Source
from regraft.formats.text.tokenizer import Tokenizer

_NORMAL, _UNUSED = 1, 5  # tokenizer.ggml.token_type
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF's metadata.

    Attributes:
        pre: the name of the way in which text is cut before merging; None for GPT-2's.
        tokens: in order of their numbers.
        kinds: GGML's type of each.
        merges: in order, each two pieces with a space between.
        named: ``bos_token_id`` and so on → token.
        adds_bos: whether every text begins with it.
        chat_template: Jinja, or None.
    """

    pre: str | None
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    named: dict[str, int]
    adds_bos: bool
    chat_template: str | None


def read_vocabulary(source: Source, tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a base's tokenizer.

    Raises:
        ExportError: it is no byte-level BPE, or cuts text in a way that GGUF has no name for.
    """
    data = json.loads(tokenizer.to_json())
    model = data["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ExportError(
            f"the tokenizer of {source.name} cannot be written as GGUF", expected="a byte-level BPE", found=_kind(model)
        )
    kinds = dict.fromkeys(model["vocab"].values(), _NORMAL)
    tokens = {number: token for token, number in model["vocab"].items()}
    for added in data["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    order = range(max(tokens) + 1)
    numbers = {token: number for number, token in tokens.items()}
    special = tokenizer.special_tokens
    named = {key: numbers[special[name]] for name, key in _NAMED.items() if special.get(name) in numbers}
    first = tokenizer.encode("a")[:1]
    return Vocabulary(
        pre=_pre(source, data),
        tokens=[tokens.get(number, f"[UNUSED{number}]") for number in order],
        kinds=[kinds.get(number, _UNUSED) for number in order],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        named=named,
        adds_bos=first == [named.get("bos_token_id")],
        chat_template=tokenizer.chat_template,
    )


def _pre(source: Source, data: dict[str, Any]) -> str | None:
    if source.kind is Kind.GGUF:  # what is built from it may be simpler than what it says
        name = GgufFile(source.path).metadata.get("tokenizer.ggml.pre")
        return name if isinstance(name, str) else None
    return split_name(data["pre_tokenizer"], str(source.path))


def _kind(model: dict[str, Any]) -> str:
    return f"{model.get('type')}{' with bytes to fall back on' if model.get('byte_fallback') else ''}"


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary, size: int) -> None:
    """Write the metadata of a tokenizer; rows of the embedding beyond its tokens get names of their own.

    Args:
        writer: of the file.
        vocabulary: to write.
        size: rows of the embedding.

    Raises:
        ExportError: there are more tokens than rows.
    """
    spare = range(len(vocabulary.tokens), size)
    if len(vocabulary.tokens) > size:
        raise ExportError(f"the tokenizer has {len(vocabulary.tokens)} tokens, the embedding {size} rows")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre or "gpt-2")
    writer.add_token_list(vocabulary.tokens + [f"[UNUSED{number}]" for number in spare])
    writer.add_token_types(vocabulary.kinds + [_UNUSED] * len(spare))
    writer.add_token_merges(vocabulary.merges)
    for key, number in vocabulary.named.items():
        writer.add_uint32(f"tokenizer.ggml.{key}", number)
    writer.add_add_bos_token(vocabulary.adds_bos)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
