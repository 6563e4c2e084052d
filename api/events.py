"""GET /v1/events: dropped packets as they are dropped, as Server-Sent Events or a JSON object a line.

Owns the two formats.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from api.listening import DAY_S, ListenerStream, PacketFilters
from api.openapi import READ_PROBLEMS, problems
from api.running import InService
from firewall.listener import Taken

router = APIRouter(tags=["packets"])

SSE, NDJSON = "text/event-stream", "application/x-ndjson"


class EventFilters(PacketFilters):
    """The query."""

    format: Literal["sse", "ndjson"] | None = Field(
        None,
        description="Instead of what the header Accept says: Server-Sent Events, or a JSON object a line.",
    )
    seconds: float | None = Field(None, gt=0, le=DAY_S, description="Ends after so long.")


ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events, until `seconds` are over or either side ends it.",
        "content": {each: {"schema": {"type": "string"}} for each in (SSE, NDJSON)},
    }
}


@router.get(
    "/v1/events",
    response_class=Response,
    responses={**ANSWER, **problems(404, *READ_PROBLEMS)},
    summary="Follow dropped packets",
)
async def follow_events(
    request: Request, running: InService, filters: Annotated[EventFilters, Query()]
) -> Response:
    """What is dropped from now on. `{"suppressed": n}` and `{"lost": n}` tell of packets that are missing."""
    wanted = filters.wanted(running.firewall)
    is_ndjson = filters.format == "ndjson" or (
        filters.format is None and NDJSON in request.headers.get("accept", "")
    )
    if is_ndjson:
        return ListenerStream(running.firewall, wanted, ndjson, NDJSON, seconds=filters.seconds)
    return ListenerStream(running.firewall, wanted, server_sent, SSE, seconds=filters.seconds)


async def ndjson(taken: AsyncIterator[Taken]) -> AsyncIterator[bytes]:
    async for each in taken:
        lines = [orjson.dumps({name: count}) for name, count in _missing(each)]
        lines += [report.json for report in each.reports]
        if lines:
            yield b"\n".join(lines) + b"\n"


async def server_sent(taken: AsyncIterator[Taken]) -> AsyncIterator[bytes]:
    """What is missing is an event with that name; a comment keeps a connection open on which nothing happens."""
    yield b": listening\n\n"
    async for each in taken:
        events = [
            b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps({name: count}))
            for name, count in _missing(each)
        ]
        events += [b"data: %s\n\n" % report.json for report in each.reports]
        yield b"".join(events) or b": nothing\n\n"


def _missing(taken: Taken) -> list[tuple[str, int]]:
    counts = (("suppressed", taken.suppressed), ("lost", taken.lost))
    return [(name, count) for name, count in counts if count]
