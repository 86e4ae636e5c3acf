"""One engine with its server's application, in a process of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve
from starlette.types import Message

from regraft.server.app import make_app
from regraft.server.cluster.forward import Forwarded, answered
from regraft.server.cluster.plan import Plan
from regraft.server.service import Service

# Adapters of which the router remembers that a replica had them last; the engine's own memory decides what stays there.
REMEMBERED = 1024


class Replica:
    """Answers requests that the front sends on; a class for ``serve.deployment``.

    Args:
        plan: what it serves.
    """

    def __init__(self, plan: Plan) -> None:
        logging.getLogger("regraft").setLevel(logging.WARNING)
        self._engine = plan.engine()
        self._service = Service(
            self._engine, plan.adapters, base_name=plan.base_name, keys=plan.keys, settings=plan.settings
        )
        self._app = make_app(self._service, hosts=None)  # the front has looked at the host already
        self._lifespan: Any = None
        self._starting = asyncio.Lock()

    async def answer(self, forwarded: Forwarded) -> AsyncGenerator[list[Message]]:
        """The response's ASGI messages."""
        await self._start()
        if serve.get_multiplexed_model_id() in self._service.catalogue:
            await self.remember(serve.get_multiplexed_model_id())
        async for messages in answered(self._app, forwarded):
            yield messages

    async def whole(self, forwarded: Forwarded) -> list[Message]:
        """The same at once."""
        await self._start()
        return [message async for messages in answered(self._app, forwarded) for message in messages]

    @serve.multiplexed(max_num_models_per_replica=REMEMBERED)  # type: ignore[untyped-decorator]
    async def remember(self, adapter: str) -> str:
        """Tell the router that this adapter is here; the engine has loaded it, or will with the request."""
        return adapter

    async def check_health(self) -> None:
        """Raises, if the engine has stopped: then Ray starts the replica anew."""
        if self._engine.is_closed:
            raise RuntimeError("the engine has stopped")

    async def _start(self) -> None:
        async with self._starting:
            if self._lifespan is None:
                self._lifespan = self._app.router.lifespan_context(self._app)
                await self._lifespan.__aenter__()
