"""``POST /v1/embeddings``: a text as one vector, the last hidden state of its last token, scaled to length 1.

In a causal model only the last token has seen all of the text, so it stands for it; a mean would be one over tokens of
which most know little of the text.
"""

from __future__ import annotations

import base64
from contextlib import aclosing

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from regraft.server.answers import Ask
from regraft.server.completions import each_prompt
from regraft.server.errors import ApiError, as_api_error, bad_request
from regraft.server.generation import check_choices, until_gone
from regraft.server.schema import EmbeddingRequest
from regraft.server.service import Service

Vector = NDArray[np.float32]


async def embed(service: Service, request: Request, body: EmbeddingRequest) -> Response:
    """Embed one or more texts; of an adapter or mix, it is the base's hidden state with them."""
    mix = service.catalogue.resolve(body.model, body.adapters, service.caller(request))
    given = each_prompt(body.input)
    check_choices(service, len(given))
    prompts = [await service.encode(one) if isinstance(one, str) else tuple(one) for one in given]
    for prompt in prompts:
        service.check_room(len(prompt))
        if not prompt:
            raise bad_request("A text without tokens has no embedding.", "input")
    options = {"max_tokens": 1, "hidden": True, "timeout_s": service.settings.request_timeout_s}
    vectors = await until_gone(request, _vectors(service, [Ask(prompt, mix, options) for prompt in prompts]))
    shown = [
        {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format or "float")}
        for index, vector in enumerate(_cut(vector, body.dimensions) for vector in vectors)
    ]
    tokens = sum(map(len, prompts))
    service.metrics.prompt_tokens.labels(service.metrics.labels.of_mix(mix)).inc(tokens)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    model = body.model or service.catalogue.base_name
    return JSONResponse({"object": "list", "data": shown, "model": model, "usage": usage})


async def _vectors(service: Service, asks: list[Ask]) -> list[Vector]:
    """The last hidden states, in the order of the asks."""
    found: dict[int, Vector] = {}
    try:
        with service.gate.enter(len(asks)):
            async with aclosing(service.answers.pieces(asks)) as pieces:
                async for index, piece in pieces:
                    if piece.completion is not None and piece.completion.hidden is not None:
                        found[index] = piece.completion.hidden
    except Exception as error:
        service.metrics.failures.labels("embeddings", as_api_error(error).code).inc()
        raise
    return [found[index] for index in range(len(asks))]


def _cut(hidden: Vector, dimensions: int | None) -> Vector:
    """The first so many numbers, scaled to length 1."""
    if dimensions is not None and dimensions > len(hidden):
        raise bad_request(f"The base's hidden states have {len(hidden)} dimensions.", "dimensions")
    vector = hidden[:dimensions]
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length):
        raise ApiError(500, "The base's hidden state is not finite.", code="generation_failed")
    return vector / np.float32(length or 1.0)


def _written(vector: Vector, encoding: str) -> list[float] | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
