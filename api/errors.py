"""Every error as application/problem+json (RFC 9457), in one shape.

Owns the one table from error classes to HTTP status, and the answers to errors that FastAPI and Starlette
find themselves. `pointer` in `errors` is a JSON pointer (RFC 6901) into the body, or `?name` for a parameter
of the query. It must not decide what is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from firewall.errors import (
    AlreadyExists,
    Conflict,
    FirewallError,
    InvalidInput,
    KernelRefused,
    Lockout,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    PreconditionFailed,
    Problem,
    ProgramRejected,
    StoreFailed,
    TableFull,
    errno_name,
)

MEDIA_TYPE = "application/problem+json"
STATUS: dict[type[FirewallError], int] = {
    InvalidInput: 422,
    NotFound: 404,
    AlreadyExists: 409,
    Conflict: 409,
    Lockout: 409,
    NotAuthenticated: 401,
    NotPermitted: 403,
    PreconditionFailed: 412,
    TableFull: 507,
    KernelRefused: 503,
    ProgramRejected: 503,
    StoreFailed: 503,
    FirewallError: 500,
}
MOST_PROBLEMS = 100

log = structlog.get_logger(__name__)


class RequestRefused(HTTPException):
    """What the API refuses before the firewall is asked. An HTTPException, or FastAPI makes it a 400."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        hint: str = "",
        problems: Sequence[Problem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.code = code
        self.hint = hint
        self.problems = tuple(problems)

    def response(self, path: str) -> Response:
        return problem_response(
            self.status_code, self.code, self.detail, path, self.hint, self.problems, headers=self.headers
        )


def problem_response(
    status: int,
    code: str,
    detail: str,
    path: str,
    hint: str = "",
    problems: Sequence[Problem] = (),
    members: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """`path`: of the request. `members`: what this type of problem tells besides."""
    body = {
        "type": f"/problems/{code}",
        "title": code.replace("_", " ").capitalize().replace("json", "JSON"),
        "status": status,
        "detail": detail,
        "instance": path,
        "code": code,
        "errors": [{"pointer": each.pointer, "detail": each.detail} for each in problems[:MOST_PROBLEMS]],
        "hint": hint or None,
        **(members or {}),
    }
    return Response(orjson.dumps(body), status, headers, MEDIA_TYPE)


def status_of(error: FirewallError) -> int:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def firewall_error_response(error: FirewallError, path: str) -> Response:
    status = status_of(error)
    if status >= 500:
        log.warning("request refused", path=path, status=status, code=error.code, detail=error.detail)
    return problem_response(
        status, error.code, error.detail, path, error.hint, error.problems, _members(error)
    )


def _members(error: FirewallError) -> dict[str, object]:
    if isinstance(error, TableFull):
        return {
            "table": error.table,
            "capacity": error.capacity,
            "wanted": error.wanted,
            "setting": error.setting,
        }
    if isinstance(error, Lockout):
        return {"lockouts": list(error.connections)}
    members: dict[str, object] = {}
    if isinstance(error, KernelRefused):
        members["errno"] = errno_name(error.errno) if error.errno else None
    if isinstance(error, ProgramRejected):
        members["log"] = error.log
    return members


def internal_error_response(path: str) -> Response:
    return problem_response(
        500, "internal", "the service failed at this request", path, "the service's log has the traceback"
    )


def install(app: FastAPI) -> None:
    app.add_exception_handler(FirewallError, _on_firewall_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(StarletteHTTPException, _on_http_exception)


async def _on_firewall_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FirewallError)
    return firewall_error_response(error, request.url.path)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [Problem(_pointer(fault["loc"]), _describe(fault)) for fault in error.errors()]
    code = "invalid_query" if problems[0].pointer.startswith("?") else "invalid_body"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    detail = f"{problems[0].pointer or 'the body'}: {problems[0].detail}{more}"
    return problem_response(422, code, detail, request.url.path, "see /docs", problems)


def _pointer(location: Sequence[int | str]) -> str:
    """FastAPI's location: `("body", "add", 3)` becomes `/add/3`, `("query", "page")` becomes `?page`."""
    origin, *inner = (str(part) for part in location)
    if origin != "body":
        return "?" + ".".join(inner)
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in inner)


def _describe(fault: Mapping[str, Any]) -> str:
    kind, where = fault["type"], fault["loc"]
    if kind == "missing" and len(where) == 1:
        return "is missing; send a JSON object"
    if kind == "extra_forbidden":
        return "unknown field" if where[0] == "body" else "unknown parameter"
    if kind in ("dict_type", "model_attributes_type", "model_type"):
        return "must be a JSON object"
    message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return message.replace("should be", "must be", 1)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    path = request.url.path
    if isinstance(error, RequestRefused):
        return error.response(path)
    if error.status_code == 404:
        return problem_response(404, "not_found", f"there is nothing at {path}", path, "see /docs")
    if error.status_code == 405:
        allowed = ", ".join(_methods(request.app, path))
        detail = f"{request.method} is not possible at {path}; it takes {allowed}"
        headers = {"Allow": allowed}
        return problem_response(405, "method_not_allowed", detail, path, "see /docs", headers=headers)
    return problem_response(error.status_code, "bad_request", str(error.detail), path, headers=error.headers)


def _methods(app: FastAPI, path: str) -> list[str]:
    """All that the path knows. Starlette's own Allow has only those of the first route that fits."""
    found = {
        method.upper()
        for template, operations in app.openapi()["paths"].items()
        if compile_path(template)[0].match(path)
        for method in operations
    }
    return sorted(found) or ["GET"]
