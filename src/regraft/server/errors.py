"""Errors in OpenAI's shape, and the one table that turns ours into them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from regraft.config import suggest
from regraft.errors import CapacityError, RegraftError, UsageError

_log = logging.getLogger("regraft.server")
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class ApiError(Exception):
    """What a client did wrong, or has to put up with.

    Args:
        status: of the response.
        message: a sentence.
        param: the field that it is about.
        code: a word for programs.
        retry_after_s: after which it may go better.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "server_error" if self.status >= 500 else _kind(self.status)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that means nothing."""
    return ApiError(400, message, param=param, code=code)


def no_such_model(name: str) -> ApiError:
    """The same words whether there is none, or none that this key may see."""
    message = f"The model {name!r} does not exist, or this key may not use it. GET /v1/models lists those it may."
    return ApiError(404, message, param="model", code="model_not_found")


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, CapacityError):
        return bad_request(str(error), code="capacity_exceeded")
    if isinstance(error, UsageError):
        return bad_request(str(error))
    if isinstance(error, RegraftError):
        return ApiError(500, str(error), code="generation_failed")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), code=_CODES.get(error.status_code, "http_error"))
    _log.error("a request failed", exc_info=error)
    return ApiError(500, "The server failed; its log has the details.", code="internal_error")


async def respond(_: Request, error: Exception) -> Response:
    """Starlette's handler for every exception."""
    told = as_api_error(error)
    return JSONResponse(told.body, told.status, told.headers)


def from_validation(cls: type[BaseModel], error: ValidationError) -> ApiError:
    """What is wrong with a body: the first unknown field, or else the first wrong one, by its name."""
    problems = error.errors(include_url=False, include_context=False)
    other_kind = [problem for problem in problems if problem["loc"][-1:] == ("type",)]  # whose fields are not ours
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden" and not other_kind]
    first = (other_kind or unknown or problems)[0]
    if first["type"] == "json_invalid":
        return bad_request(f"The body is not JSON: {first['msg']}.", code="invalid_json")
    if unknown:
        where = _where(first)
        hint = suggest(where, _keys(cls)) if "." not in where else ""
        return bad_request(f"Unknown field {_shown(where)}. {hint}".strip(), where, "unknown_field")
    # Where a field may be of several types, each has its say; the one that got furthest is what was meant.
    rivals = [problem for problem in problems if _where(problem).split(".")[0] == _where(first).split(".")[0]]
    where = max((_where(problem) for problem in rivals), key=lambda where: where.count("."))
    reasons = dict.fromkeys(problem["msg"] for problem in rivals if _where(problem) == where)
    found = next(problem["input"] for problem in rivals if _where(problem) == where)
    given = "" if first["type"] == "missing" or found in ([], {}, "") else f", not {repr(found)[:80]}"
    return bad_request(f"{_shown(where) or 'The body'}: {' or '.join(reasons)}{given}.", where or None)


def _where(problem: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in problem["loc"] if not _is_variant(part))


def _keys(cls: type[BaseModel]) -> Iterable[str]:
    fields: Mapping[str, Any] = cls.model_fields
    return [field.alias or name for name, field in fields.items()]


def _is_variant(part: str | int) -> bool:
    """Pydantic names the member of a union that it tried as if it were a field: ``list[str]``, ``function-after…``."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part or "-" in part)


def _shown(where: str) -> str:
    return where if len(where) <= 80 else where[:77] + "..."


def _kind(status: int) -> str:
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return kinds.get(status, "invalid_request_error")
