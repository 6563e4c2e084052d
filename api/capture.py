"""GET /v1/capture: packets with their bytes, as a pcapng file that grows.

Owns the query and where the file ends. The format is firewall/pcapng.py's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from api.listening import DAY_S, ListenerStream, PacketFilters
from api.openapi import READ_PROBLEMS, problems
from api.running import InService
from api.wiring import version
from firewall.layout import C
from firewall.listener import Taken
from firewall.pcapng import MEDIA_TYPE, PcapngWriter

router = APIRouter(tags=["packets"])

SNAP_LENGTH = 1514


class CaptureFilters(PacketFilters):
    """The query."""

    limit: int | None = Field(None, ge=1, le=1 << 40, description="Ends after so many packets.")
    seconds: float | None = Field(None, gt=0, le=DAY_S, description="Ends after so long.")
    all: bool = Field(False, description="Every packet that was judged, not only those that were dropped.")
    snap_length: int = Field(
        SNAP_LENGTH, ge=1, le=C["SNAP_LENGTH_MAX"], description="Bytes of each packet at most."
    )


ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A pcapng file, until a limit is reached or either side ends it.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get(
    "/v1/capture",
    response_class=Response,
    responses={**ANSWER, **problems(404, *READ_PROBLEMS)},
    summary="Capture packets",
)
async def capture_packets(running: InService, filters: Annotated[CaptureFilters, Query()]) -> Response:
    """Dropped packets from now on, each with its direction, and rule and reason as a comment."""
    wanted = filters.wanted(running.firewall, filters.all, filters.snap_length)
    chunks = partial(pcapng, PcapngWriter(f"ebpf-fw {version()}", filters.snap_length), filters.limit)
    return ListenerStream(
        running.firewall,
        wanted,
        chunks,
        MEDIA_TYPE,
        {"Content-Disposition": 'attachment; filename="ebpf-fw.pcapng"'},
        filters.seconds,
    )


async def pcapng(
    writer: PcapngWriter, limit: int | None, taken: AsyncIterator[Taken]
) -> AsyncIterator[bytes]:
    yield writer.header()
    written = 0
    async for each in taken:
        reports = each.reports if limit is None else each.reports[: limit - written]
        written += len(reports)
        if reports:
            yield b"".join(writer.packet(report) for report in reports)
        if written == limit:
            return
