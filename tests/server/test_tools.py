"""Function calls: what the template is given, and what is read out of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regraft.server.chat import plain
from regraft.server.schema import Message
from regraft.server.tools import CallReader, split_calls
from tests.server.running import running
from tests.tiny import make_base

LIGHT = '<tool_call>\n{"name": "light", "arguments": {"room": "kitchen", "deep": {"a": [1]}}}\n</tool_call>'
HERMES = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }} <tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ m.role }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.room }}{% endfor %}{% endfor %}"
)
TOOL: Any = {"type": "function", "function": {"name": "light", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("text", "shown", "names"),
    [
        ("no call", "no call", []),
        (LIGHT, "", ["light"]),
        ("I will. " + LIGHT + "\n" + LIGHT, "I will. ", ["light", "light"]),
        ("<tool_call>not JSON</tool_call>", "<tool_call>not JSON</tool_call>", []),
        ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
        ('<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
        ("a <tool_ca", "a <tool_ca", []),
    ],
)
def test_calls_are_taken_out_of_the_text(text: str, shown: str, names: list[str]) -> None:
    assert split_calls(text)[0] == shown
    assert [call["function"]["name"] for call in split_calls(text)[1]] == names
    reader = CallReader()
    streamed = "".join(reader.push(character) for character in text)
    rest, calls = reader.finish()
    assert streamed + rest == shown
    assert [call["function"]["name"] for call in calls] == names


def test_a_calls_arguments_are_text() -> None:
    (call,) = split_calls(LIGHT)[1]
    assert json.loads(call["function"]["arguments"]) == {"room": "kitchen", "deep": {"a": [1]}}
    assert call["type"] == "function" and call["id"].startswith("call_")


def test_templates_get_arguments_as_an_object_and_parts_as_text() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "light", "arguments": '{"room": "hall"}'}}
    given = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]
    system, assistant, tool = plain([Message.model_validate(message) for message in given])
    assert system == {"role": "system", "content": "ab"}
    assert assistant["tool_calls"][0]["function"]["arguments"] == {"room": "hall"}
    assert tool["tool_call_id"] == "c1"


def test_tools_reach_the_template_and_choice_none_keeps_them_out(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "chat_template.jinja").write_text(HERMES)
    with running(base) as server:
        options: Any = {"model": "", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        create = server.client().chat.completions.create
        counts = [
            create(**options, **more).usage.prompt_tokens
            for more in ({}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "none"})
        ]
    assert counts[0] == counts[2] < counts[1]
