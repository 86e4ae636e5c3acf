"""What a task yields: a prompt, its answer, the part that varies, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One prompt and its answer, not yet in a split.

    Attributes:
        prompt: the whole prompt; with ``system``, the user's turn.
        answer: with ``system`` the assistant's turn, else the completion, which begins with a space.
        text: the part of the prompt that varies, without the instruction; near-twins are sought in it.
        sources: what the row was made from (a template, a passage, a sender and a thread, …). No source is in two
            splits.
        system: the system line of a conversation; None for a plain prompt.
    """

    prompt: str
    answer: str
    text: str
    sources: tuple[str, ...]
    system: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as regraft reads it; it ignores ``source`` and ``text``, which are for the search for twins."""
        told = {"source": list(self.sources), "text": self.text}
        if self.system is None:
            return {"prompt": self.prompt, "completion": self.answer, **told}
        turns = {"system": self.system, "user": self.prompt, "assistant": self.answer}
        return {"messages": [{"role": role, "content": content} for role, content in turns.items()], **told}


def from_json(row: dict[str, Any]) -> Row:
    """Read back what ``to_json`` wrote."""
    text, sources = row["text"], tuple(row["source"])
    if "prompt" in row:
        return Row(row["prompt"], row["completion"], text, sources)
    system, user, assistant = (turn["content"] for turn in row["messages"])
    return Row(user, assistant, text, sources, system)
