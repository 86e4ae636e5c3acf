"""Conversations as chat templates are given them, and the prompts that templates make of those."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.errors import UsageError
from regraft.server.errors import bad_request
from regraft.server.renderer import Renderer
from regraft.server.schema import CalledFunction, ChatRequest, Message, ToolCall
from regraft.server.tools import write_call, write_response

Json = dict[str, Any]
_ROLES = {"developer": "system", "function": "tool"}  # as templates call them


@dataclass(frozen=True)
class Prompt:
    """What the base continues.

    Attributes:
        text: as the template writes it.
        has_tools: whether the text offers the request's tools.
        left_out: fields that offer tools and that the text says nothing of, each with the reason.
    """

    text: str
    has_tools: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)


async def prompt_of(renderer: Renderer, body: ChatRequest) -> Prompt:
    """The prompt of a request; tools that the template does not take are left out, as no call is asked for.

    Raises:
        ApiError: a variable for the template has a name that is taken.
        UsageError: as :meth:`regraft.server.renderer.Renderer.render` does, without tools.
    """
    variables: Json = dict(body.chat_template_kwargs or {})
    if reserved := sorted(variables.keys() & {"messages", "add_generation_prompt", "tools"}):
        raise bad_request(f"{reserved[0]} is not for chat_template_kwargs.", "chat_template_kwargs")
    messages = conversation(renderer, body.messages)
    text = await renderer.render(messages, **variables)
    left_out = {"functions": "send them as tools"} if body.functions else {}
    if not body.tools:
        return Prompt(text, left_out=left_out)
    if body.tool_choice == "none":
        return Prompt(text, left_out={"tools": "tool_choice is none", **left_out})
    tools = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in body.tools]
    try:
        with_tools = await renderer.render(messages, tools=tools, **variables)
    except UsageError:  # it takes the conversation, and refuses tools
        with_tools = text
    if with_tools == text:
        return Prompt(text, left_out={"tools": "the base's chat template does not take them", **left_out})
    return Prompt(with_tools, has_tools=True, left_out=left_out)


def conversation(renderer: Renderer, messages: Sequence[Message]) -> list[Json]:
    """Messages in the form that the base's template shows whole."""
    given = plain(messages)
    return given if renderer.mentions("tool_calls") else without_tools(given)


def plain(messages: Sequence[Message]) -> list[Json]:
    """Messages as templates know them: content is text, and a call's arguments are an object."""
    return [_plain(message) for message in messages]


def without_tools(messages: Sequence[Json]) -> list[Json]:
    """The same for templates that know no calls: a call is text of the assistant's, and its result of the user's.

    Results that follow each other are one turn, so that roles go on taking turns.
    """
    found: list[Json] = []
    in_results = False
    for message in messages:
        is_result = message["role"] == "tool"
        calls = [write_call(call["function"]) for call in message.get("tool_calls", ())]
        said = write_response(message["content"]) if is_result else message["content"]
        text = "\n".join(part for part in (said, *calls) if part)
        if is_result and in_results:
            found[-1]["content"] += "\n" + text
        elif is_result:
            found.append({"role": "user", "content": text})
        else:
            found.append({**{key: message[key] for key in message if key != "tool_calls"}, "content": text})
        in_results = is_result
    return found


def _plain(message: Message) -> Json:
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    plain: Json = {"role": _ROLES.get(message.role, message.role), "content": content or ""}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    calls = [_plain_call(call) for call in message.tool_calls or ()]
    if message.function_call is not None:
        calls.append({"type": "function", "function": _plain_function(message.function_call)})
    if calls:
        plain["tool_calls"] = calls
    return plain


def _plain_call(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": _plain_function(call.function)}


def _plain_function(function: CalledFunction) -> Json:
    return {"name": function.name, "arguments": _arguments(function.arguments)}


def _arguments(text: str) -> Any:
    """The object that a call's arguments are; the text itself where it is none."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return said if isinstance(said, dict) else text
