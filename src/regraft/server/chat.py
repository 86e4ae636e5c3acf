"""``POST /v1/chat/completions``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from regraft.engine.answer import Completion, Piece
from regraft.engine.run.sampler import Drawn
from regraft.engine.vocabulary import JsonConstraint, Vocabulary
from regraft.server.answers import Ask
from regraft.server.errors import bad_request
from regraft.server.generation import Job, Json, check_choices, respond
from regraft.server.schema import ChatRequest, Message, ToolCall
from regraft.server.service import Service, seed_of
from regraft.server.tools import OPENING, CallReader, split_calls


async def chat(service: Service, request: Request, body: ChatRequest) -> Response:
    """Continue a conversation."""
    mix = service.catalogue.resolve(body.model, body.adapters, service.caller(request))
    num_choices = body.n or 1
    check_choices(service, num_choices)
    prompt = await service.encode(await _text(service, body), add_special_tokens=False)
    options = dict(service.options(body, body.max_completion_tokens or body.max_tokens, len(prompt)))
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    elif body.top_logprobs:
        raise bad_request("top_logprobs goes with logprobs: true.", "top_logprobs")
    constraint = await _constraint(service, body)
    asks = [
        Ask(prompt, mix, options | seed_of(body, choice) | ({"constraint": constraint.another()} if constraint else {}))
        for choice in range(num_choices)
    ]
    with_calls = bool(_tools(body)) and service.renderer.mentions(OPENING)
    shape = _ChatShape(service.vocabulary if body.logprobs else None, with_calls=with_calls)
    return await respond(service, request, Job(body, asks, 1, shape, "chat"))


def plain(messages: Sequence[Message]) -> list[Json]:
    """Messages as templates know them: content is text, and a call's arguments are an object."""
    return [_plain(message) for message in messages]


class _ChatShape:
    """Chat's objects."""

    kind, chunk_kind, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, vocabulary: Vocabulary | None, *, with_calls: bool) -> None:
        self._vocabulary, self._with_calls = vocabulary, with_calls
        self._readers: dict[int, CallReader] = {}
        self._begun: set[int] = set()

    def whole(self, index: int, completion: Completion) -> Json:
        """A choice."""
        text, calls = split_calls(completion.text) if self._with_calls else (completion.text, [])
        message: Json = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        reason = "tool_calls" if calls else str(completion.finish_reason)
        return {
            "index": index,
            "message": message,
            "logprobs": self._said(completion.logprobs),
            "finish_reason": reason,
        }

    def pieces(self, index: int, piece: Piece) -> list[Json]:
        """A stream's choices: the role, text, calls, and the end."""
        choices = []
        if index not in self._begun:
            self._begun.add(index)
            choices.append(self._choice(index, {"role": "assistant", "content": ""}))
        reader = self._readers.setdefault(index, CallReader()) if self._with_calls else None
        text = reader.push(piece.text) if reader else piece.text
        calls: list[Json] = []
        if reader and piece.completion is not None:
            rest, calls = reader.finish()
            text += rest
        if text or (piece.drawn and self._vocabulary):
            choices.append(self._choice(index, {"content": text}, self._said(piece.drawn)))
        if calls:
            numbered = [{"index": number, **call} for number, call in enumerate(calls)]
            choices.append(self._choice(index, {"tool_calls": numbered}))
        if piece.completion is not None:
            reason = "tool_calls" if calls else str(piece.completion.finish_reason)
            choices.append({**self._choice(index, {}), "finish_reason": reason})
        return choices

    def _choice(self, index: int, delta: Json, logprobs: Json | None = None) -> Json:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _said(self, drawn: Sequence[Drawn]) -> Json | None:
        """OpenAI's logprobs object."""
        if self._vocabulary is None:
            return None
        content = []
        for each in drawn:
            assert each.logprob is not None
            likeliest = [self._token(token, logprob) for token, logprob in each.likeliest]
            content.append({**self._token(each.token, each.logprob), "top_logprobs": likeliest})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> Json:
        assert self._vocabulary is not None
        data = self._vocabulary.bytes_of(token)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


async def _text(service: Service, body: ChatRequest) -> str:
    tools = _tools(body)
    if tools and not service.renderer.mentions("tools"):
        raise bad_request("The base's chat template does not know of tools.", "tools")
    variables: dict[str, Any] = dict(body.chat_template_kwargs or {})
    if reserved := sorted(variables.keys() & {"messages", "add_generation_prompt", "tools"}):
        raise bad_request(f"{reserved[0]} is not for chat_template_kwargs.", "chat_template_kwargs")
    if tools:
        variables["tools"] = tools
    return await service.renderer.render(plain(body.messages), **variables)


def _tools(body: ChatRequest) -> list[Json]:
    tools = [] if body.tool_choice == "none" else body.tools or []
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]


async def _constraint(service: Service, body: ChatRequest) -> JsonConstraint | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        if body.logprobs:
            await asyncio.to_thread(service.vocabulary.bytes_of, 0)  # make its table, away from the event loop
        return None
    schema: Json = {"type": "object"}
    if wanted.type == "json_schema":
        if wanted.json_schema is None or wanted.json_schema.schema_ is None:
            raise bad_request("A response_format of type json_schema needs json_schema.schema.", "response_format")
        schema = wanted.json_schema.schema_
    return await asyncio.to_thread(service.vocabulary.json_constraint, schema)


def _plain(message: Message) -> Json:
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    plain: Json = {"role": role, "content": content or ""}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [_plain_call(call) for call in message.tool_calls]
    return plain


def _plain_call(call: ToolCall) -> Json:
    function = {"name": call.function.name, "arguments": _arguments(call.function.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def _arguments(text: str) -> Any:
    """The object that a call's arguments are; the text itself where it is none."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return said if isinstance(said, dict) else text
