"""/v1/sets/{name}/import and export: whole lists into a set and out of it, in the formats that people have.

Owns their query, and reading a body part by part. What a list means is firewall.lists', what a set is the enforcer's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from api import schemas
from api.asking import ChangeQuery, Prefer, caution, perform, tried
from api.export import bounded
from api.json_body import JsonResponse
from api.openapi import CHANGE_PROBLEMS, READ_PROBLEMS, problems
from api.running import InService
from firewall.errors import InvalidInput, Problem
from firewall.lists.collector import Manner, ReadList
from firewall.lists.reading import ListReader
from firewall.lists.writing import MEDIA_TYPES, written
from firewall.match import parse_duration
from firewall.view import EntriesOutcome

router = APIRouter(prefix="/v1/sets", tags=["sets"])
PART_BYTES = 1 << 16
Format = Literal["plain", "ipset", "nft", "csv", "ndjson", "spamhaus"]
_EXAMPLES = {
    "text/plain": "203.0.113.7\n198.51.100.0/24 # comment\n192.0.2.1-192.0.2.9\n",
    "application/x-ndjson": '{"address": "203.0.113.7", "ttl": "1h", "comment": "scan"}\n',
    "text/csv": "ip,comment\n203.0.113.7,scan\n",
    "application/json": '{"nftables": [{"set": {"elem": ["203.0.113.7"]}}]}',
    "application/octet-stream": "add bad 203.0.113.7\n",
}


class ListQuery(ChangeQuery):
    """How a list is read, and what becomes of it."""

    mode: Literal["add", "delete", "replace"] = Field(
        "add", description="Add its entries, delete them, or make the set just these."
    )
    format: Format | None = Field(
        None, description="Absent: told by the content type, or by how the list begins."
    )
    strict: bool = Field(False, description="One bad line, or host bits in a CIDR, and nothing is changed.")
    ttl: str | None = Field(
        None, description="Of entries that say nothing of their time: seconds, or as in 1h.", examples=["1h"]
    )
    allow_empty: bool = Field(False, description="With mode=replace: an empty list empties the set.")

    def manner(self, now: float) -> Manner:
        """Raises InvalidInput."""
        try:
            ttl_s = None if self.ttl is None else parse_duration(self.ttl)
        except ValueError as error:
            problem = Problem("?ttl", str(error))
            raise InvalidInput(f"?ttl: {error}", "such as 90s or 1h", (problem,), "invalid_query") from None
        return Manner(now, ttl_s, self.strict)


@router.post(
    "/{name}/import",
    responses={**tried(schemas.ListAnswer), **problems(404, *CHANGE_PROBLEMS)},
    summary="Import a list into a set",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                media_type: {"schema": {"type": "string"}, "example": example}
                for media_type, example in _EXAMPLES.items()
            },
        }
    },
)
async def import_entries(
    request: Request,
    running: InService,
    name: str,
    query: Annotated[ListQuery, Query()],
    prefer: Prefer = None,
) -> Response:
    """All of it as one change. Plain text, netset, `ipset save`, `nft -j list set`, CSV, NDJSON or Spamhaus' NDJSON.

    Bad lines are counted, the first hundred are told, and the others are taken; host bits are masked. Duplicates and
    overlaps are no fault: of the same prefix the last one counts."""
    firewall = running.firewall
    await asyncio.to_thread(firewall.set, name)  # 404 before anything is read
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    reader = ListReader(query.manner(time.time()), query.format, media_type)
    async for part in _parts(request):
        await asyncio.to_thread(reader.feed, part)
    found = await asyncio.to_thread(reader.end)
    _refuse_nothing(found, query)
    change = {
        "add": firewall.add_entries,
        "delete": firewall.delete_entries,
        "replace": firewall.replace_entries,
    }[query.mode]
    asking = caution(request.scope, query, prefer)
    return await perform(running, asking, partial(change, name, found.columns), partial(_imported, found))


async def _parts(request: Request) -> AsyncIterator[bytes]:
    """Of some size each, however the client cut them: each is a trip to a thread."""
    begun = bytearray()
    async for part in request.stream():
        begun += part
        if len(begun) >= PART_BYTES:
            yield bytes(begun)
            begun.clear()
    if begun:
        yield bytes(begun)


def _refuse_nothing(found: ReadList, query: ListQuery) -> None:
    """A list that came to nothing must not empty a set unasked. Raises InvalidInput."""
    if found.entries or query.mode != "replace" or (query.allow_empty and not found.bad):
        return
    if found.bad:
        detail = f"none of the {found.bad:,} lines is an entry: this is no list, or of another format"
        raise InvalidInput(detail, "name its format; nothing was changed", found.problems, "invalid_list")
    hint = "to empty the set, say so: allow_empty=true; nothing was changed"
    raise InvalidInput("the list is empty, and mode=replace would empty the set", hint, code="empty_list")


def _imported(found: ReadList, outcome: EntriesOutcome) -> Response:
    return JsonResponse(
        {
            **asdict(outcome),
            "format": found.format,
            "entries": found.entries,
            "bad": found.bad,
            "host_bits": found.host_bits,
            "expired": found.expired,
            "errors": [{"pointer": each.pointer, "detail": each.detail} for each in found.problems],
        }
    )


class ExportQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["plain", "ndjson", "ipset"] = Field(
        "ndjson",
        description="ndjson keeps times and comments; plain the addresses; ipset is for ipset restore.",
    )


@router.get(
    "/{name}/export",
    response_class=Response,
    responses={
        200: {
            "description": "The entries, one a line, in order of addresses.",
            "content": {
                media_type: {"schema": {"type": "string"}} for media_type in set(MEDIA_TYPES.values())
            },
        },
        **problems(404, *READ_PROBLEMS),
    },
    summary="Export a set",
)
def export_entries(running: InService, name: str, query: Annotated[ExportQuery, Query()]) -> Response:
    """As it is at one moment, and as import reads it again."""
    firewall = running.firewall
    firewall.set(name)
    parts = written(query.format, name, firewall.all_entries(name), time.time())
    return StreamingResponse(bounded(parts), 200, media_type=MEDIA_TYPES[query.format])
