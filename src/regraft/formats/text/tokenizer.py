"""A base's tokenizer without ``transformers``: text to tokens and back, conversations to prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from regraft.errors import FormatError, UsageError
from regraft.formats.gguf.family import gguf_config
from regraft.formats.gguf.file import GgufFile
from regraft.formats.gguf.tokenizer import gguf_special_tokens, gguf_tokenizer
from regraft.formats.source import Kind, Source
from regraft.formats.text.chat_template import ChatTemplate, Message
from regraft.formats.text.stream_decoder import StreamDecoder
from regraft.storage import read_json

TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
SPECIAL_NAME = "special_tokens_map.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A tokenizer with its chat template.

    Attributes:
        special_tokens: named special tokens, such as ``bos_token``.
        special_ids: all special tokens, which decoding leaves out.
        eos_ids: tokens that end an answer, sorted: the tokenizer's own and those of the base's generation config.
    """

    def __init__(
        self,
        backend: Backend,
        special_tokens: Mapping[str, str],
        template: str | None,
        eos_ids: Iterable[int],
        origin: str,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        named = [token for token in special_tokens.values() if token not in _added(backend)]
        backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in named])
        self._backend, self._origin = backend, origin
        self.special_tokens = dict(special_tokens)
        self.special_ids = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        own = backend.token_to_id(special_tokens["eos_token"]) if "eos_token" in special_tokens else None
        self.eos_ids = tuple(sorted({*eos_ids, *([] if own is None else [own])}))
        self._template = None if template is None else ChatTemplate(template, origin, special_tokens)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, added ones too."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def chat_template(self) -> str | None:
        """The template's source, if there is one."""
        return self._template.text if self._template else None

    def to_json(self) -> str:
        """The whole tokenizer as a ``tokenizer.json``, added tokens too."""
        return str(self._backend.to_str())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text; special tokens that are written in it count as such.

        Args:
            text: any text.
            add_special_tokens: whether what the tokenizer puts around a text (BOS, mostly) is wanted.

        Raises:
            UsageError: the text holds half of a surrogate pair.
        """
        try:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except (TypeError, UnicodeEncodeError):
            raise UsageError("a text", expected="Unicode", found="half of a surrogate pair") from None

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of some tokens, spaces as they are; bytes that are no UTF-8 come as U+FFFD."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def stream(self) -> StreamDecoder:
        """A decoder that takes one token after the other."""
        return StreamDecoder(self.decode)

    def apply_chat_template(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a conversation; it is to be encoded without further special tokens.

        Args:
            messages: at least one, each with ``role`` and ``content``.
            add_generation_prompt: whether the start of an answer follows.
            variables: what else the template asks for (``tools``, ``enable_thinking``).

        Raises:
            UsageError: there is no template, or it refuses the conversation.
            FormatError: the template cannot be parsed.
        """
        if self._template is None:
            raise UsageError(
                f"{self._origin} has no chat template", hint="Give the prompt as plain text, or take an instruct base."
            )
        return self._template.render(messages, add_generation_prompt=add_generation_prompt, **variables)


def open_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a base.

    Raises:
        FormatError: a file is missing or damaged, or the GGUF file's tokenizer is of a kind that is not built here.
    """
    if source.kind is Kind.GGUF:
        return _from_gguf(GgufFile(source.path))
    return _from_directory(source.path)


def _from_gguf(file: GgufFile) -> Tokenizer:
    template = file.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise FormatError(f"{file.path}: chat_template", expected="a text", found=type(template).__name__)
    eos = _token_ids(gguf_config(file).get("eos_token_id"), str(file.path))
    return Tokenizer(gguf_tokenizer(file), gguf_special_tokens(file), template, eos, str(file.path))


def _from_directory(folder: Path) -> Tokenizer:
    path = folder / TOKENIZER_NAME
    if not path.exists():
        raise FormatError(f"{path} is missing", hint="Save the tokenizer again with transformers 5.")
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise FormatError(f"{path} cannot be read: {error}") from None
    config = read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).exists() else {}
    _add_listed(folder, config, backend)
    return Tokenizer(backend, _special_tokens(folder, config), _template(folder, config), _eos_ids(folder), str(folder))


def _add_listed(folder: Path, config: Mapping[str, Any], backend: Backend) -> None:
    """Tokens that only ``tokenizer_config.json`` lists."""
    listed = config.get("added_tokens_decoder") or {}
    try:
        tokens = [AddedToken(**listed[number]) for number in sorted(listed, key=int)]
    except (TypeError, ValueError, LookupError):
        raise FormatError(f"{folder / CONFIG_NAME}: added_tokens_decoder is not understood") from None
    known = _added(backend)
    backend.add_tokens([token for token in tokens if token.content not in known])
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    texts = [_text(folder, token) for token in extra] if isinstance(extra, list) else []
    known = _added(backend)
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in texts if text not in known])


def _added(backend: Backend) -> set[str]:
    return {token.content for token in backend.get_added_tokens_decoder().values()}


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Named tokens; directories from before ``added_tokens_decoder`` have them in a file of their own."""
    named = dict(config)
    if "added_tokens_decoder" not in config and (folder / SPECIAL_NAME).exists():
        named |= read_json(folder / SPECIAL_NAME)
    return {name: _text(folder, named[name]) for name in _NAMED if named.get(name) is not None}


def _text(folder: Path, token: Any) -> str:
    """A special token, which older files write as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise FormatError(f"{folder}: a special token", expected="a text", found=repr(token)[:80])
    return text


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The default template: a file of its own goes before the one in ``tokenizer_config.json``."""
    path = folder / TEMPLATE_NAME
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise FormatError(f"{path} cannot be read as UTF-8 text") from None
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise FormatError(f"{folder / CONFIG_NAME}: chat_template", expected="a text", found=type(template).__name__)
    return template


def _eos_ids(folder: Path) -> list[int]:
    """The model's own, which its generation config states, or its config where there is none."""
    path = folder / "generation_config.json"
    path = path if path.exists() else folder / "config.json"
    return _token_ids(read_json(path).get("eos_token_id"), str(path))


def _token_ids(value: Any, origin: str) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise FormatError(f"{origin}: eos_token_id", expected="token ids", found=repr(value)[:80])
    return ids
