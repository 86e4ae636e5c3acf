"""Function calls in answers, where a model writes them as Hermes and Qwen do.

    <tool_call>
    {"name": "light", "arguments": {"room": "kitchen"}}
    </tool_call>

Other ways of writing them stay in the answer's text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

from regraft.engine.stop import StopStrings

OPENING = "<tool_call>"
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|$)", re.DOTALL)


class CallReader:
    """Takes an answer's text as it comes, and keeps back what may be calls."""

    def __init__(self) -> None:
        self._until_call = StopStrings((OPENING,))
        self._text: list[str] = []
        self._num_shown = 0

    def push(self, text: str) -> str:
        """The text that is no part of a call."""
        self._text.append(text)
        shown = self._until_call.push(text)
        self._num_shown += len(shown)
        return shown

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """What was kept back: text if it holds no call that can be read, and the calls, in OpenAI's shape."""
        rest = "".join(self._text)[self._num_shown :]
        calls = [call for found in _CALL.findall(rest) if (call := _call(found)) is not None]
        return ("", calls) if calls else (rest, [])


def split_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """A whole answer's text and calls."""
    reader = CallReader()
    shown = reader.push(text)
    rest, calls = reader.finish()
    return shown + rest, calls


def write_call(function: Mapping[str, Any]) -> str:
    """A call as such models write it; raises KeyError without name and arguments."""
    said = {"name": function["name"], "arguments": function["arguments"]}
    return f"{OPENING}\n{json.dumps(said, ensure_ascii=False)}\n</tool_call>"


def write_response(text: str) -> str:
    """What a call came to, as the templates of such models give it back."""
    return f"<tool_response>\n{text}\n</tool_response>"


def _call(text: str) -> dict[str, Any] | None:
    try:
        said = json.loads(text)
        name, arguments = said["name"], said.get("arguments", {})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(name, str):
        return None
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": name, "arguments": written},
    }
