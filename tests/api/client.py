"""A client of the application in this process that also holds every answer against the OpenAPI document.

Owns the event loop that the application runs on. It must not know what a test expects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.routing import compile_path

from api import schemas

BASE = "http://127.0.0.1:9378"
T = TypeVar("T")
PROBLEM = "application/problem+json"


class ApiClient:
    """Synchronous, though the application is not. A context manager."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._runner = asyncio.Runner()
        self._paths: dict[str, Any] = app.openapi()["paths"]
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url=BASE)

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._http.aclose())
        self._runner.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """In the loop that the application runs on."""
        return self._runner.run(coroutine)

    def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """`body`: sent as JSON; `options`: httpx's."""
        if body is not None:
            options["json"] = body
        response = self._runner.run(self._http.request(method, path, **options))
        self._check(method, path, response)
        return response

    def together(self, *requests: tuple[str, str, Any]) -> list[httpx.Response]:
        """All at once: method, path, body."""

        async def send() -> list[httpx.Response]:
            return await asyncio.gather(*(self._http.request(m, p, json=body) for m, p, body in requests))

        return self._runner.run(send())

    def _check(self, method: str, path: str, response: httpx.Response) -> None:
        media_type = response.headers.get("content-type")
        if response.is_error:
            assert media_type == PROBLEM, response.text
            problem = schemas.ProblemDetails.model_validate_json(response.content)
            assert problem.status == response.status_code
            assert problem.type == f"/problems/{problem.code}"
            assert problem.instance == path.partition("?")[0]
        operation = self._operation(method, path)
        if operation is None or response.status_code == 500:
            return
        documented = operation["responses"].get(str(response.status_code))
        assert documented, f"{method} {path} answered {response.status_code}, which is not documented"
        reference = documented.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref")
        if reference:
            assert media_type == "application/json"
            TypeAdapter(getattr(schemas, reference.rpartition("/")[2])).validate_json(response.content)
        elif response.status_code in (204, 304):
            assert response.content == b""

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        bare = path.partition("?")[0]
        fitting = [t for t in self._paths if compile_path(t)[0].match(bare)]
        exact = [t for t in fitting if "{" not in t] or fitting
        found: dict[str, Any] | None = self._paths[exact[0]].get(method.lower()) if exact else None
        return found


def pointers(response: httpx.Response) -> list[str]:
    return [each["pointer"] for each in response.json()["errors"]]
