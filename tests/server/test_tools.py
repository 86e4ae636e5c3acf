"""Function calls: what the template is given, and what is read out of answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from regraft.server.conversation import plain, without_tools
from regraft.server.schema import Message
from regraft.server.tools import CallReader, split_calls
from tests.server.running import Reply, Running, running
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


# Roles take turns, and there are no others; as Llama 2's and Gemma's.
STRICT = (
    "{% for m in messages %}{% if m.role != ['user', 'assistant'][loop.index0 % 2] %}"
    "{{ raise_exception('roles must take turns') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
CALL = {"name": "light", "arguments": '{"room": "hall"}'}
TOOL_CALL = {"id": "c1", "type": "function", "function": CALL}
ASKED = {"role": "user", "content": "hello"}
HISTORY = [
    ASKED,
    {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL, {**TOOL_CALL, "id": "c2"}]},
    {"role": "tool", "tool_call_id": "c1", "content": "done"},
    {"role": "tool", "tool_call_id": "c2", "content": "on already"},
    {"role": "assistant", "content": "It is on."},
    ASKED,
]
OLD_HISTORY = [
    ASKED,
    {"role": "assistant", "content": None, "function_call": CALL},
    {"role": "function", "name": "light", "content": "done"},
]


def ask(server: Running, **more: Any) -> Reply:
    body = {"messages": [ASKED], "max_tokens": 4, "temperature": 0, **more}
    return server.post("/v1/chat/completions", body)


def said(reply: Reply) -> Any:
    assert reply.status == 200, reply.data
    return reply.json["choices"][0]["message"]["content"]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], Running]]:
    """Serves a base with that template."""
    with ExitStack() as stack:

        def start(template: str) -> Running:
            base = make_base(tmp_path / "base")
            (base / "chat_template.jinja").write_text(template)
            return stack.enter_context(running(base))

        yield start


@pytest.mark.parametrize("model", ["base", "lora1", "lora0*0.5+lora1"])
@pytest.mark.parametrize(
    ("more", "left_out"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"tools": [TOOL] * 3, "tool_choice": "auto", "parallel_tool_calls": False}, "tools"),
        ({"tools": [TOOL], "tool_choice": "none"}, "tools"),
        ({"tools": [TOOL], "tool_choice": None}, "tools"),
        ({"functions": [TOOL["function"]]}, "functions"),
        ({"functions": [TOOL["function"]], "function_call": "auto"}, "functions"),
        ({"functions": [TOOL["function"]], "function_call": "none"}, "functions"),
    ],
)
def test_tools_that_the_template_knows_nothing_of_are_left_out(
    server: Running, caplog: pytest.LogCaptureFixture, model: str, more: dict[str, Any], left_out: str
) -> None:
    caplog.set_level("INFO", logger="regraft.server")
    reply, plain = ask(server, model=model, **more), ask(server, model=model)
    assert said(reply) == said(plain)
    told = reply.headers["regraft-left-out"]
    assert told.startswith(left_out + ";reason=")
    assert any(told in record.getMessage() for record in caplog.records)
    assert "regraft-left-out" not in plain.headers


def test_a_stream_says_so_too(server: Running) -> None:
    reply = ask(server, tools=[TOOL], stream=True, stream_options={"include_usage": True})
    assert reply.status == 200 and reply.headers["regraft-left-out"].startswith("tools;")
    assert reply.data.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "more",
    [{"tools": []}, {"tools": None}, {"tool_choice": "auto"}, {"tool_choice": "none", "parallel_tool_calls": True},
     {"functions": [], "function_call": "auto"}, {"functions": None, "function_call": None}],
)  # fmt: skip
def test_where_no_tool_is_offered_none_is_left_out(server: Running, more: dict[str, Any]) -> None:
    reply = ask(server, **more)
    assert said(reply) == said(ask(server)) and "regraft-left-out" not in reply.headers


@pytest.mark.parametrize("more", [{"tool_choice": "required"}, {"tool_choice": {"type": "function", "function": CALL}}])
def test_calls_are_not_forced(server: Running, more: dict[str, Any]) -> None:
    reply = ask(server, tools=[TOOL], **more)
    assert reply.status == 400 and reply.error["param"] == "tool_choice"


def test_tools_reach_the_template_and_choice_none_keeps_them_out(serve: Callable[[str], Running]) -> None:
    server = serve(HERMES)
    choices: list[dict[str, Any]] = [{}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "none"}]
    replies = [ask(server, **more) for more in choices]
    counts = [reply.json["usage"]["prompt_tokens"] for reply in replies]
    assert counts[0] == counts[2] < counts[1]
    assert ["regraft-left-out" in reply.headers for reply in replies] == [False, False, True]


@pytest.mark.parametrize(
    "template",
    [
        "{# no tools here #}" + STRICT,
        "{% if tools %}{{ raise_exception('no tools, please') }}{% endif %}" + STRICT,
        "{% for t in tools or [] %}{{ t.function.parameters.nothing.at.all }}{% endfor %}" + STRICT,
    ],
)
def test_a_template_that_names_tools_need_not_take_them(serve: Callable[[str], Running], template: str) -> None:
    server = serve(template)
    reply = ask(server, tools=[TOOL])
    assert said(reply) == said(ask(server)) and reply.headers["regraft-left-out"].startswith("tools;")


def test_what_the_template_refuses_is_refused_with_tools_too(serve: Callable[[str], Running]) -> None:
    reply = ask(serve(STRICT), messages=[ASKED, ASKED], tools=[TOOL])
    assert reply.status == 400 and "take turns" in reply.error["message"]


def test_templates_without_calls_get_them_as_text() -> None:
    first, second, third, *rest = without_tools(plain([Message.model_validate(message) for message in HISTORY]))
    call = '<tool_call>\n{"name": "light", "arguments": {"room": "hall"}}\n</tool_call>'
    assert first == ASKED and rest == HISTORY[4:]
    assert second == {"role": "assistant", "content": f"{call}\n{call}"}
    done, on = ("<tool_response>\n" + text + "\n</tool_response>" for text in ("done", "on already"))
    assert third == {"role": "user", "content": f"{done}\n{on}"}
    assert split_calls(second["content"])[1][0]["function"] == CALL  # it reads as what such models write


@pytest.mark.parametrize("history", [HISTORY, OLD_HISTORY])
@pytest.mark.parametrize("more", [{}, {"tools": [TOOL]}])
def test_a_conversation_with_calls_goes_on(serve: Callable[[str], Running], history: Any, more: dict[str, Any]) -> None:
    server = serve(STRICT)
    reply = ask(server, messages=history, **more)
    assert said(reply) is not None
    tokens = server.post("/tokenize", {"messages": history}).json["tokens"]
    assert reply.json["usage"]["prompt_tokens"] == len(tokens)
    text = server.service.engine.base.tokenizer.decode(tokens)
    assert '"room": "hall"' in text and "done" in text
