"""The process in which chat templates run: they are code from elsewhere, and may take any time and memory.

It reads frames from stdin, four bytes of length and JSON, and answers each with one on stdout. The first one has the
template, and its empty answer says that the process is ready; each later one has a conversation.
"""

from __future__ import annotations

import json
import sys
from typing import Any, BinaryIO

from regraft.errors import RegraftError
from regraft.formats.text.chat_template import ChatTemplate

LENGTH_BYTES = 4


def main() -> None:
    """Answer until stdin ends, or something takes the process down."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    first = _read(source)
    assert first is not None
    _limit(first["memory_bytes"])
    template = ChatTemplate(first["template"], first["origin"], first["tokens"])
    _write(sink, {})
    while (asked := _read(source)) is not None:
        _write(sink, _render(template, asked, first["max_chars"]))


def _render(template: ChatTemplate, asked: dict[str, Any], max_chars: int) -> dict[str, str]:
    try:
        text = template.render(
            asked["messages"], add_generation_prompt=asked["add_generation_prompt"], **asked["variables"]
        )
    except RegraftError as error:
        return {"error": str(error)}
    if len(text) > max_chars:
        return {"error": f"the base's chat template wrote {len(text)} characters, more than the {max_chars} it may"}
    return {"text": text}


def _limit(memory_bytes: int) -> None:
    """Let the process have no more memory than that, where the system can say so."""
    try:
        import resource
    except ImportError:  # Windows; there only time is limited
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _read(source: BinaryIO) -> dict[str, Any] | None:
    head = source.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    frame: dict[str, Any] = json.loads(source.read(int.from_bytes(head)))
    return frame


def _write(sink: BinaryIO, frame: dict[str, str]) -> None:
    data = json.dumps(frame).encode()
    sink.write(len(data).to_bytes(LENGTH_BYTES) + data)
    sink.flush()


if __name__ == "__main__":
    main()
