"""``POST /v1/chat/completions``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from regraft.engine.answer import Completion, Piece
from regraft.engine.run.sampler import Drawn
from regraft.engine.vocabulary import JsonConstraint, Vocabulary
from regraft.server.answers import Ask
from regraft.server.conversation import prompt_of
from regraft.server.errors import bad_request
from regraft.server.generation import Job, Json, check_choices, respond
from regraft.server.schema import ChatRequest
from regraft.server.service import Service, seed_of
from regraft.server.tools import OPENING, CallReader, split_calls


async def chat(service: Service, request: Request, body: ChatRequest) -> Response:
    """Continue a conversation."""
    mix = service.catalogue.resolve(body.model, body.adapters, service.caller(request))
    num_choices = body.n or 1
    check_choices(service, num_choices)
    said = await prompt_of(service.renderer, body)
    prompt = await service.encode(said.text, add_special_tokens=False)
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
    with_calls = said.has_tools and service.renderer.mentions(OPENING)
    shape = _ChatShape(service.vocabulary if body.logprobs else None, with_calls=with_calls)
    return await respond(service, request, Job(body, asks, 1, shape, "chat", said.left_out))


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
