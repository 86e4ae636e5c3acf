"""Data of the page: adapters with their report cards, and the engine's state. Only for callers with a key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from regraft.server.keys import Caller
from regraft.server.service import Service

_PRIVATE = "a private one"


async def adapters(service: Service, request: Request) -> Response:
    """The adapters that a caller may use, with their report cards."""
    visible = service.catalogue.visible(service.caller(request))
    shown = await asyncio.to_thread(service.page.describe, visible)
    return JSONResponse({"base": service.catalogue.base_name, "adapters": shown})


async def state(service: Service, request: Request) -> Response:
    """What the engine is doing."""
    caller = service.caller(request)
    stats = await asyncio.to_thread(service.engine.stats)
    free, idle = stats.num_free_pages * stats.page_bytes, stats.num_idle_pages * stats.page_bytes
    total, in_adapters = stats.num_pages * stats.page_bytes, sum(stats.adapter_bytes.values())
    keys_and_values = max(total - free - in_adapters, 0)
    memory = {"total": total, "free": free, "idle": idle, "adapters": in_adapters, "kv": keys_and_values}
    return JSONResponse(
        {
            "time_s": time.monotonic(),
            "num_tokens": service.metrics.num_generated,
            "num_running": stats.num_running,
            "num_waiting": stats.num_waiting,
            "max_answers": service.settings.max_answers,
            "running_adapters": _named(stats.running_adapters, caller),
            "waiting_adapters": _named(stats.waiting_adapters, caller),
            "resident_adapters": _named(stats.adapter_bytes, caller),
            "memory": memory,
        }
    )


def _named(names: Iterable[str], caller: Caller) -> list[str]:
    return sorted({name if caller.may_use(name) else _PRIVATE for name in names})
