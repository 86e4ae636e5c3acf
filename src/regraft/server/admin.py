"""vLLM's calls that load and unload adapters: off unless the server was given a folder and a token for them."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from regraft.errors import RegraftError
from regraft.server.errors import ApiError, bad_request, no_such_model
from regraft.server.folder import inside
from regraft.server.keys import check_token
from regraft.server.schema import LoadRequest, UnloadRequest
from regraft.server.service import Service


def check_admin(service: Service, request: Request) -> None:
    """Let only the holder of the admin token pass.

    Raises:
        ApiError: 403: loading is off; 401: another token, or none.
    """
    if service.admin_token is None or service.load_root is None:
        message = "Adapters cannot be loaded here: the server runs without --load-root and --admin-token-file."
        raise ApiError(403, message, code="loading_is_off")
    check_token(service.admin_token, request.headers.get("authorization"))


async def load(service: Service, _: Request, body: LoadRequest) -> Response:
    """Load an adapter from below the root."""
    if body.lora_name in service.catalogue and not body.load_inplace:
        message = f"There is an adapter {body.lora_name!r} already; load_inplace: true replaces it."
        raise bad_request(message, "lora_name", "already_loaded")
    assert service.load_root is not None
    try:
        place = inside(service.load_root, body.lora_path)
        root = place.relative_to(service.load_root.resolve()).as_posix()
        await asyncio.to_thread(service.catalogue.put, body.lora_name, place, root)
    except RegraftError as error:
        raise bad_request(str(error), "lora_path", "adapter_refused") from None
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload(service: Service, _: Request, body: UnloadRequest) -> Response:
    """Unload an adapter; one of the watched folder stays away until its files change."""
    if body.lora_name not in service.catalogue:
        raise no_such_model(body.lora_name[:200])
    await asyncio.to_thread(service.catalogue.drop, body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
