"""``POST /v1/completions``, and ``POST /tokenize``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from regraft.engine.answer import Completion, Piece
from regraft.engine.run.sampler import Drawn
from regraft.engine.vocabulary import Vocabulary
from regraft.server.answers import Ask
from regraft.server.conversation import conversation
from regraft.server.errors import bad_request
from regraft.server.generation import Job, Json, check_choices, respond
from regraft.server.schema import CompletionRequest, Prompts, TokenizeRequest
from regraft.server.service import Service, seed_of


async def complete(service: Service, request: Request, body: CompletionRequest) -> Response:
    """Continue one or more texts."""
    mix = service.catalogue.resolve(body.model, body.adapters, service.caller(request))
    given = each_prompt(body.prompt)
    each = body.n or 1
    check_choices(service, len(given) * each)
    prompts = [await service.encode(one) if isinstance(one, str) else tuple(one) for one in given]
    asks = []
    for prompt in prompts:
        options = dict(service.options(body, body.max_tokens, len(prompt)))
        if body.logprobs is not None:
            options["logprobs"] = body.logprobs
        asks += [Ask(prompt, mix, options | seed_of(body, choice)) for choice in range(each)]
    if body.logprobs is not None:
        await asyncio.to_thread(service.vocabulary.bytes_of, 0)  # make its table, away from the event loop
    shape = _TextShape(service.vocabulary if body.logprobs is not None else None)
    return await respond(service, request, Job(body, asks, len(prompts), shape, "completions"))


async def tokenize(service: Service, request: Request, body: TokenizeRequest) -> Response:
    """The tokens of a text, or of a conversation as the chat template writes it."""
    service.catalogue.resolve(body.model, body.adapters, service.caller(request))
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("Give either prompt or messages.", "prompt")
    if body.messages is not None:
        begin = body.add_generation_prompt is not False
        text = await service.renderer.render(conversation(service.renderer, body.messages), add_generation_prompt=begin)
        tokens = await service.encode(text, add_special_tokens=body.add_special_tokens or False)
    else:
        tokens = await service.encode(body.prompt or "", add_special_tokens=body.add_special_tokens is not False)
    return JSONResponse({"count": len(tokens), "max_model_len": service.context_tokens, "tokens": tokens})


class _TextShape:
    """Completions' objects."""

    kind = chunk_kind = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, vocabulary: Vocabulary | None) -> None:
        self._vocabulary = vocabulary
        self._offsets: dict[int, int] = {}

    def whole(self, index: int, completion: Completion) -> Json:
        """A choice."""
        reason = str(completion.finish_reason)
        return self._choice(index, completion.text, self._said(index, completion.logprobs), reason)

    def pieces(self, index: int, piece: Piece) -> list[Json]:
        """A stream's choice."""
        reason = None if piece.completion is None else str(piece.completion.finish_reason)
        return [self._choice(index, piece.text, self._said(index, piece.drawn), reason)]

    def _choice(self, index: int, text: str, logprobs: Json | None, reason: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _said(self, index: int, drawn: Sequence[Drawn]) -> Json | None:
        """The legacy logprobs object: lists side by side."""
        if self._vocabulary is None:
            return None
        offset = self._offsets.get(index, 0)
        said: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for each in drawn:
            text = self._text(each.token)
            said["tokens"].append(text)
            said["token_logprobs"].append(each.logprob)
            said["top_logprobs"].append({self._text(token): logprob for token, logprob in each.likeliest})
            said["text_offset"].append(offset)
            offset += len(text)
        self._offsets[index] = offset
        return said

    def _text(self, token: int) -> str:
        assert self._vocabulary is not None
        return self._vocabulary.bytes_of(token).decode(errors="replace")


def each_prompt(prompt: Prompts) -> list[str] | list[list[int]]:
    """One or more prompts, each a text or tokens."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt
