"""Datasets of prompts and answers: JSON lines in TRL's shapes, split, hashed and turned into token ids.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}
    {"prompt": [{"role": "user", "content": "…"}], "completion": [{"role": "assistant", "content": "…"}]}

Other keys are ignored, but for ``tools``: it would change the prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from regraft.errors import DataError, UsageError

SHAPES = '"messages", or "prompt" and "completion"'
Row = TypeVar("Row")


@dataclass(frozen=True)
class Example:
    """One prompt and its answer.

    Attributes:
        messages: the turns before the answer, where the prompt is a conversation.
        prompt: the text before the answer, where it is not.
        answer: the completion, or the content of the assistant's last turn.
        source: ``file:line``, for errors; two examples of other lines may be equal.
    """

    messages: tuple[dict[str, str], ...] | None
    prompt: str | None
    answer: str
    source: str = field(default="", compare=False)

    @property
    def prompt_text(self) -> str:
        """The prompt as one text for people to read; a conversation has its roles in front."""
        if self.messages is None:
            return self.prompt or ""
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in self.messages)


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example; ``answer_ids`` ends with the end-of-sequence token, ``source`` is the example's."""

    prompt_ids: list[int]
    answer_ids: list[int]
    source: str = field(default="", compare=False)


def read_examples(path: Path) -> list[Example]:
    """Read a JSON-lines file of prompts and answers; see :func:`read_rows`."""
    return read_rows(path, example_of)


def read_rows(path: Path, read: Callable[[dict[str, Any], str], Row], *, shapes: str = SHAPES) -> list[Row]:
    """Read a JSON-lines file.

    Args:
        path: of the file.
        read: makes something of an object and of its ``file:line``.
        shapes: which keys an object has, for errors.

    Raises:
        DataError: the file is missing or empty, or a row cannot be used; the message starts with ``file:line``.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    # Not splitlines(): a JSON string may hold U+2028, and the other line ends that Python knows, as they are.
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    sources = ((line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip())
    rows = [read(_row(line, source, shapes), source) for line, source in sources]
    if not rows:
        raise DataError(str(path), expected=f"JSON lines with {shapes}", found="an empty file")
    return rows


def example_of(row: dict[str, Any], source: str) -> Example:
    """The prompt and the answer of one object; ``source`` is its ``file:line``.

    Raises:
        DataError: it cannot be used.
    """
    if row.get("tools"):
        raise DataError(f"{source}: tools are not supported", hint="Write them into the system message.")
    messages: tuple[dict[str, str], ...] | None
    prompt: str | None
    if "messages" in row:
        turns = _turns(row["messages"], source)
        if turns[-1]["role"] != "assistant":
            raise DataError(f"{source}: last message", expected="role 'assistant'", found=f"role {turns[-1]['role']!r}")
        messages, prompt, answer = turns[:-1], None, turns[-1]["content"]
    elif "prompt" in row and "completion" in row:
        messages, prompt = _prompt(row["prompt"], source)
        answer = _completion(row["completion"], source)
    else:
        found = ", ".join(json.dumps(key, ensure_ascii=False) for key in row) or "an empty object"
        raise DataError(f"{source}: wrong keys", expected=SHAPES, found=found)
    example = Example(messages, prompt, answer, source)
    if not example.prompt_text.strip():
        raise DataError(f"{source}: empty prompt")
    if not answer.strip():
        raise DataError(f"{source}: empty answer", hint="Drop the row, or say what should be answered.")
    return example


def _row(line: bytes, source: str, shapes: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{source}: text encoding", expected="Unicode", found="half of a surrogate pair") from None
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        raise DataError(f"{source}: text encoding", expected="UTF-8", found=found) from None
    except json.JSONDecodeError as error:
        hint = "A JSON array has to be written one object a line." if line.lstrip().startswith(b"[") else None
        raise DataError(f"{source}: not JSON: {error.msg} at column {error.colno}", hint=hint) from None
    if not isinstance(row, dict):
        raise DataError(source, expected=f"a JSON object with {shapes}", found=_kind(row))
    return row


def _turns(messages: Any, source: str) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{source}: messages", expected="a list of at least one", found=_kind(messages))
    turns = []
    for message in messages:
        if not isinstance(message, dict):
            raise DataError(f"{source}: message", expected='"role" and "content"', found=_kind(message))
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise DataError(f"{source}: message's {key!r}", expected="a text", found=_kind(message.get(key)))
        turns.append({"role": message["role"], "content": message["content"]})
    return tuple(turns)


def _prompt(prompt: Any, source: str) -> tuple[tuple[dict[str, str], ...] | None, str | None]:
    if isinstance(prompt, list):
        return _turns(prompt, source), None
    if isinstance(prompt, str):
        return None, prompt
    raise DataError(f"{source}: prompt", expected="a text or a list of messages", found=_kind(prompt))


def _completion(completion: Any, source: str) -> str:
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list):
        turns = _turns(completion, source)
        roles = [turn["role"] for turn in turns]
        if roles != ["assistant"]:
            raise DataError(f"{source}: completion", expected="one assistant message", found=", ".join(roles))
        return turns[0]["content"]
    raise DataError(f"{source}: completion", expected="a text or a list of messages", found=_kind(completion))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    if value is None:
        return "nothing"
    return "an empty list" if value == [] else names[type(value)]


def encode(example: Example, tokenizer: Any, *, max_length: int | None = None) -> Encoded:
    """Turn an example into token ids, the answer with its end of sequence, for training and for scoring alike.

    Args:
        example: a conversation goes through the tokenizer's chat template with the generation prompt, and its answer
            ends as the template ends a turn; a plain prompt gets what the tokenizer puts before a text (BOS, or
            nothing), and its answer ends with the end-of-sequence token.
        tokenizer: a ``transformers`` tokenizer, or :class:`regraft.evaluate.engine_answers.EngineTokenizer`.
        max_length: most tokens of prompt and answer together.

    Raises:
        DataError: it is longer than ``max_length``; or it is a conversation that there is no template for, or that
            the template refuses.
    """
    where = f"{example.source}: " if example.source else ""
    text = _rendered(example, tokenizer, where)
    plain = example.messages is None
    prompt_ids = _ids(tokenizer, text, special=plain)
    answer_ids = _answer_ids(tokenizer, text, prompt_ids, example.answer, special=plain)
    end = tokenizer.eos_token_id if plain else _end_of_turn(example, text, tokenizer)
    if end is not None:
        answer_ids.append(end)
    length = len(prompt_ids) + len(answer_ids)
    if max_length is not None and length > max_length:
        raise DataError(f"{where}too long: {length} tokens, the limit is {max_length}")
    return Encoded(prompt_ids, answer_ids, example.source)


def _rendered(example: Example, tokenizer: Any, where: str) -> str:
    if example.messages is None:
        return example.prompt or ""
    if not tokenizer.chat_template:
        raise DataError(
            f"{where}the base's tokenizer has no chat template for messages",
            hint="Give plain prompts, or take an instruct base.",
        )
    try:
        text = tokenizer.apply_chat_template(list(example.messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise what they like: roles out of turn, no system role
        raise DataError(f"{where}the base's chat template refuses it: {error or type(error).__name__}") from None
    return str(text)


def _ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    return ids[:-1] if special and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def _end_of_turn(example: Example, prompt: str, tokenizer: Any) -> int | None:
    """The special token that the chat template ends an answer with; not every model's is its end of sequence."""
    turns = [*(example.messages or ()), {"role": "assistant", "content": example.answer}]
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    if whole.startswith(prompt + example.answer):
        tail = _ids(tokenizer, whole[len(prompt + example.answer) :])
        if tail and tail[0] in tokenizer.all_special_ids:
            return int(tail[0])
    return tokenizer.eos_token_id


def _answer_ids(tokenizer: Any, prompt: str, prompt_ids: list[int], answer: str, *, special: bool) -> list[int]:
    # A SentencePiece tokenizer puts a word mark before a text that is tokenised alone. Tokenised together with the
    # prompt, the answer gets the ids it was trained on; where the two merge across the border, alone has to do.
    together = _ids(tokenizer, prompt + answer, special=special)
    if together[: len(prompt_ids)] == prompt_ids and len(together) > len(prompt_ids):
        return together[len(prompt_ids) :]
    return _ids(tokenizer, answer)


def split_examples(examples: Sequence[Example], dev_share: float, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Split into train and dev, each in the given order, so that no prompt is in both.

    The prompts with the smallest hashes (of seed and prompt) go to dev: the order of the rows does not matter.

    Args:
        examples: the rows to split.
        dev_share: share of the distinct prompts that goes to dev, in [0, 1); above 0 at least one goes, if there are
            two.
        seed: another seed gives another split.

    Raises:
        UsageError: ``dev_share`` is out of range.
    """
    if not 0 <= dev_share < 1:
        raise UsageError("share of dev rows", expected="a number of at least 0 and below 1", found=str(dev_share))
    digests = [_digest([seed, example.messages, example.prompt]) for example in examples]
    distinct = sorted(set(digests))
    num_dev = min(max(round(dev_share * len(distinct)), int(dev_share > 0)), len(distinct) - 1)
    dev = set(distinct[: max(num_dev, 0)])
    rows = list(zip(examples, digests, strict=True))
    return [row for row, digest in rows if digest not in dev], [row for row, digest in rows if digest in dev]


def data_hash(examples: Sequence[Example]) -> str:
    """Hex sha256 over what the examples say, in their order; not over how the file writes it."""
    return _digest([[example.messages, example.prompt, example.answer] for example in examples])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
