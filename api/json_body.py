"""JSON in and out by orjson: the parser of request bodies and the class of JSON answers.

Owns the message about a body that is not JSON. Knows nothing of the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse

from api.errors import RequestRefused


class JsonResponse(JSONResponse):
    """Of anything orjson knows, dataclasses included."""

    def render(self, content: object) -> bytes:
        return orjson.dumps(content)


class JsonRequest(Request):
    async def json(self) -> Any:
        """Raises RequestRefused, which names the place."""
        body = await self.body()
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            detail = f"the body is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
            raise RequestRefused(422, "invalid_json", detail) from None


class JsonRoute(APIRoute):
    """A route that reads its body by JsonRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json
