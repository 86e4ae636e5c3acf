"""The server's routes, as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from regraft.errors import RegraftError
from regraft.server import admin, chat, completions, embeddings, page_data
from regraft.server.body import read_body
from regraft.server.catalogue import Listed
from regraft.server.errors import ApiError, from_validation, no_such_model, respond
from regraft.server.openapi import Operation, describe
from regraft.server.schema import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    LoadRequest,
    TokenizeRequest,
    UnloadRequest,
)
from regraft.server.service import Service

Body = TypeVar("Body", bound=BaseModel)
Endpoint = Callable[[Request], Awaitable[Response]]
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


_ERRORS = (ApiError, HTTPException, RegraftError, Exception)


@dataclass(frozen=True)
class _Call:
    """A route, and what the OpenAPI document says of it."""

    operation: Operation
    endpoint: Endpoint


def make_app(service: Service, *, hosts: tuple[str, ...] | None = LOOPBACK) -> Starlette:
    """The application.

    Args:
        service: what it serves.
        hosts: the names under which it may be called, None for any. On the loopback device this keeps out web pages
            that had their own host's name resolve to this machine.
    """
    calls = _calls(service)
    document = describe([call.operation for call in calls], has_keys=service.keys.are_needed)

    async def openapi(_: Request) -> Response:
        return JSONResponse(document)

    async def page_file(request: Request) -> Response:
        return service.page.file(request.path_params.get("name", "index.html"))

    routes = [Route(c.operation.path, c.endpoint, methods=[c.operation.method], name=c.operation.name) for c in calls]
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts or "*"), www_redirect=False)
    return Starlette(
        routes=[
            *routes,
            Route("/openapi.json", openapi),
            Route("/", page_file, name="page"),
            Route("/page/{name}", page_file, name="page_file"),
        ],
        middleware=[trusted],
        exception_handlers={ClientDisconnect: _nobody, **dict.fromkeys(_ERRORS, respond)},
        lifespan=_lifespan(service),
    )


def _calls(service: Service) -> list[_Call]:
    def posted(
        path: str, cls: type[Body], handle: Callable[[Service, Request, Body], Awaitable[Response]], summary: str
    ) -> _Call:
        async def endpoint(request: Request) -> Response:
            _check_caller(service, request, path)
            return await handle(service, request, await _read(service, request, cls))

        return _Call(Operation("POST", path, summary, cls), endpoint)

    def got(path: str, handle: Callable[[Service, Request], Awaitable[Response]], summary: str) -> _Call:
        async def endpoint(request: Request) -> Response:
            if path != "/health":
                _check_caller(service, request, path)
            return await handle(service, request)

        return _Call(Operation("GET", path, summary, None), endpoint)

    return [
        posted("/v1/chat/completions", ChatRequest, chat.chat, "Continue a conversation."),
        posted("/v1/completions", CompletionRequest, completions.complete, "Continue one or more texts."),
        posted("/v1/embeddings", EmbeddingRequest, embeddings.embed, "One or more texts as vectors."),
        got("/v1/models", _models, "The base, and the adapters that this key may use."),
        got("/v1/models/{model}", _model, "One of them."),
        posted("/v1/load_lora_adapter", LoadRequest, admin.load, "Load an adapter (admin token)."),
        posted("/v1/unload_lora_adapter", UnloadRequest, admin.unload, "Unload an adapter (admin token)."),
        posted("/tokenize", TokenizeRequest, completions.tokenize, "The tokens of a text or a conversation."),
        got("/health", _health, "Whether the server is up."),
        got("/page/adapters", page_data.adapters, "The adapters with their report cards, for the page."),
        got("/page/state", page_data.state, "What the engine is doing, for the page."),
        got("/metrics", _metrics, "Counts and times for Prometheus."),
    ]


def _check_caller(service: Service, request: Request, path: str) -> None:
    """Before anything of the body is read."""
    if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        admin.check_admin(service, request)
    else:
        service.caller(request)


async def _read(service: Service, request: Request, cls: type[Body]) -> Body:
    """The request's body; raises ApiError, as :func:`regraft.server.body.read_body` does, and 400: it means nothing."""
    data = await read_body(request, service.settings)
    try:
        return await asyncio.to_thread(cls.model_validate_json, data)
    except ValidationError as error:
        raise from_validation(cls, error) from None


async def _models(service: Service, request: Request) -> Response:
    shown = [_shown(service, listed) for listed in service.catalogue.visible(service.caller(request))]
    return JSONResponse({"object": "list", "data": [_shown(service, None), *shown]})


async def _model(service: Service, request: Request) -> Response:
    name = request.path_params["model"]
    if name == service.catalogue.base_name:
        return JSONResponse(_shown(service, None))
    for listed in service.catalogue.visible(service.caller(request)):
        if listed.name == name:
            return JSONResponse(_shown(service, listed))
    raise no_such_model(name[:200])


def _shown(service: Service, listed: Listed | None) -> Mapping[str, Any]:
    """A model object; of the base, without an adapter."""
    base = service.catalogue.base_name
    return {
        "id": listed.name if listed else base,
        "object": "model",
        "created": listed.created_s if listed else service.catalogue.created_s,
        "owned_by": "regraft",
        "root": listed.root if listed else base,
        "parent": base if listed else None,
        "max_model_len": service.context_tokens,
    }


async def _health(service: Service, _: Request) -> Response:
    if service.engine.is_closed:
        raise ApiError(503, "The engine has stopped.", code="engine_stopped")
    return JSONResponse({"status": "ok"})


async def _metrics(service: Service, _: Request) -> Response:
    return Response(await asyncio.to_thread(service.metrics.text), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _nobody(_: Request, __: Exception) -> Response:
    """The client has gone: this is for the log alone."""
    return Response(status_code=499)


def _lifespan(service: Service) -> Callable[[Starlette], Any]:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await service.renderer.start()
        watching = None
        if service.folder is not None:
            await asyncio.to_thread(service.folder.look, settled=True)
            watching = asyncio.create_task(service.folder.watch(service.settings.poll_s))
        try:
            yield
        finally:
            if watching is not None:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
            await service.renderer.stop()

    return lifespan
