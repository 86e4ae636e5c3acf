"""Build the tokenizer that a GGUF file describes, where it is a byte-level BPE.

As ``transformers`` builds it (``integrations/gguf/gguf_tokenizer_mapping.py``), so that both strata read the same text
as the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from regraft.errors import ExportError, FormatError
from regraft.formats.gguf.family import CONVERT
from regraft.formats.gguf.file import GgufFile

_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_GPT2_END = "<|endoftext|>"

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is cut before merging; None is GPT-2's way. SmolLM's differs from it in cutting before every digit, which its
# vocabulary has no two of in one token, nor a digit with anything else.
_SPLITS = {
    None: None,
    "default": None,
    "gpt-2": None,
    "smollm": None,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "tekken": _TEKKEN,
}


def split_name(pre_tokenizer: Mapping[str, Any] | None, origin: str) -> str:
    """GGUF's name for the way in which a ``tokenizer.json`` cuts text.

    Raises:
        ExportError: it has none that is known here.
    """
    steps = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step["type"] for step in steps]
    if kinds and kinds[-1] == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
            return "smollm"
        pattern = steps[0].get("pattern", {}).get("Regex") if kinds == ["Split", "ByteLevel"] else None
        names = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2", _TEKKEN: "tekken"}
        if pattern in names and not steps[1].get("use_regex", True):
            return names[pattern]
    raise ExportError(f"{origin}: GGUF has no name that is known here for how its tokenizer cuts text")


def gguf_special_tokens(file: GgufFile) -> dict[str, str]:
    """The named special tokens (``bos_token``, …) that a file has.

    Raises:
        FormatError: one of them is not in the vocabulary.
    """
    tokens, named = _list(file, "tokens"), {}
    for name, key in _NAMED.items():
        number = file.metadata.get(f"tokenizer.ggml.{key}")
        if number is None:
            continue
        if type(number) is not int or not 0 <= number < len(tokens):
            raise FormatError(f"{file.path}: {key}", expected=f"one of {len(tokens)} tokens", found=repr(number))
        named[name] = tokens[number]
    return named


def gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of a file.

    Raises:
        FormatError: the file has none, one that is no byte-level BPE, or one that is cut in a way not known here.
    """
    tokens, split = _list(file, "tokens"), _split(file)
    letters = _byte_letters()
    alphabet = set(letters)
    spelled = [token if set(token) <= alphabet else "".join(letters[b] for b in token.encode()) for token in tokens]
    vocabulary = {token: number for number, token in enumerate(spelled)}
    merges = [tuple(merge.split(" ")) for merge in _list(file, "merges")]
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))  # type: ignore[arg-type]
    except Exception as error:  # the library raises nothing more specific
        raise FormatError(f"{file.path}: its merges are not those of its vocabulary: {error}") from None
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    pieces = [pre_tokenizers.Split(Regex(split), behavior="isolated")] if split else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*pieces, bytes_alone])
    tokenizer.decoder = decoders.ByteLevel()
    _add_special(file, tokenizer, tokens, alphabet)
    _add_ends(file, tokenizer)
    return tokenizer


def _split(file: GgufFile) -> str | None:
    model, pre = file.metadata.get("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.pre")
    if model != "gpt2":
        raise FormatError(f"{file.path}: tokenizer", expected="gpt2, a byte-level BPE", found=repr(model), hint=CONVERT)
    if not isinstance(pre, str | None) or pre not in _SPLITS:
        known = ", ".join(name for name in _SPLITS if name)
        raise FormatError(f"{file.path}: tokenizer.ggml.pre", expected=known, found=repr(pre), hint=CONVERT)
    return _SPLITS[pre]


def _add_special(file: GgufFile, tokenizer: Tokenizer, tokens: list[str], alphabet: set[str]) -> None:
    """Control tokens are special, user-defined ones whole; a control token in other letters is a mislabelled word."""
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    kinds = kinds if isinstance(kinds, list) else []
    control = [token for token, kind in zip(tokens, kinds, strict=False) if kind == CONTROL and set(token) <= alphabet]
    named = [_GPT2_END] if _GPT2_END in tokens else []
    special = dict.fromkeys([*named, *control, *gguf_special_tokens(file).values()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    plain = [token for token, kind in zip(tokens, kinds, strict=False) if kind == USER_DEFINED]
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain if token in known])


def _add_ends(file: GgufFile, tokenizer: Tokenizer) -> None:
    """What the file says stands before and after every text."""
    named, ends = gguf_special_tokens(file), {}
    for name in ("bos", "eos"):
        if file.metadata.get(f"tokenizer.ggml.add_{name}_token") and f"{name}_token" in named:
            ends[name] = named[f"{name}_token"]
    if ends:
        template = [f"{ends['bos']}:0"] if "bos" in ends else []
        template += ["$A:0"] + ([f"{ends['eos']}:0"] if "eos" in ends else [])
        numbers = [(token, tokenizer.token_to_id(token)) for token in ends.values()]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=numbers)


def _list(file: GgufFile, key: str) -> list[str]:
    value = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FormatError(f"{file.path} has no tokenizer.ggml.{key}", hint=CONVERT)
    return value


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the others for U+0100 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters, following = [], 0x100
    for byte in range(256):
        letters.append(chr(byte) if byte in printable else chr(following))
        following += byte not in printable
    return letters
