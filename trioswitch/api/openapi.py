"""The description of the HTTP API, for tools: OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0)."""

from functools import cache
from typing import Any

import msgspec

from ..version import __version__
from .requests import REQUESTS

__all__ = ["description"]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
        }
    },
}


@cache
def description() -> dict[str, Any]:
    """All methods, made from the classes of their requests."""
    schemas, components = msgspec.json.schema_components(
        list(REQUESTS.values()), ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "The HTTP API of trioswitch", "version": __version__},
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {"authorization": []}],
        "paths": {
            f"/api/{method}": {"post": _operation(method, REQUESTS[method], schema)}
            for method, schema in zip(REQUESTS, schemas, strict=True)
        },
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "authorization": {"type": "apiKey", "in": "header", "name": "Authorization"},
            },
        },
    }


def _operation(method: str, request: type, schema: dict[str, Any]) -> dict[str, Any]:
    result = "replies" if method == "batch" else "result"
    answer = {"type": "array" if method == "batch" else "object"}
    done = {"type": "object", "required": [result], "properties": {result: answer}}
    return {
        "operationId": method,
        "summary": " ".join((request.__doc__ or "").split()),
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": _response("What was asked for, or an error", {"oneOf": [done, _ERROR]}),
            "401": _response("The API key is missing or wrong", _ERROR),
            "504": _response("It was not done within 30 s", _ERROR),
        },
    }


def _response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
