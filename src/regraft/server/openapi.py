"""The OpenAPI document, made of the routes and of the requests' pydantic models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from regraft import __version__

_REFERENCE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@dataclass(frozen=True)
class Operation:
    """One route.

    Attributes:
        body: what it is sent, None for nothing.
    """

    method: str
    path: str
    summary: str
    body: type[BaseModel] | None

    @property
    def name(self) -> str:
        """``post_v1_completions``."""
        return re.sub(r"\W+", "_", f"{self.method.lower()}{self.path}").strip("_")


def describe(operations: Sequence[Operation], *, has_keys: bool) -> dict[str, Any]:
    """The document.

    Args:
        operations: all routes.
        has_keys: whether callers need an API key.
    """
    bodies = [operation.body for operation in operations if operation.body is not None]
    _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "regraft", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), "Error": _ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
    if has_keys:
        document["security"] = [{"bearer": []}]
    return document


def _operation(operation: Operation) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            "200": {"description": "Done."},
            "4XX": {"description": "The request is wrong.", "content": error},
            "5XX": {"description": "The server failed, or stops.", "content": error},
        },
    }
    parameters = re.findall(r"\{(\w+)\}", operation.path)
    if parameters:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
        ]
    if operation.body is not None:
        schema = {"$ref": _REFERENCE.format(model=operation.body.__name__)}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described
