"""/v1/sets: named lists of addresses, and their entries.

Owns these addresses and their parameters. What a body means is api.set_body's, what a change does is the enforcer's.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from api import schemas, set_body
from api.asking import CONFIRM_HEADERS, Asked, ChangeQuery, Prefer, caution, perform, tried
from api.errors import RequestRefused
from api.json_body import JsonResponse, JsonRoute
from api.openapi import CHANGE_PROBLEMS, READ_PROBLEMS, problems
from api.running import NO_QUERY, InService
from firewall.address import parse_prefix
from firewall.errors import InvalidInput, Problem
from firewall.rule import parse_id
from firewall.set_entries import EntryColumns
from firewall.view import EntriesOutcome, EntryQuery, SetView

router = APIRouter(prefix="/v1/sets", tags=["sets"], route_class=JsonRoute)
MOST_ENTRIES = 200_000  # of one JSON body
_FEW = 1000  # read on the event loop; more of them in a thread


class Page(BaseModel):
    model_config = ConfigDict(extra="forbid")

    page: int = Field(1, ge=1, le=1 << 31)
    page_size: int = Field(100, ge=1, le=1000)


class EntryFilters(Page):
    """The query of a listing."""

    address: str | None = Field(
        None, description="Address or CIDR: entries that cover it or lie in it.", examples=["203.0.113.7"]
    )
    comment: str | None = Field(None, description="Entries with this in their comment.")
    expires: bool | None = Field(None, description="true: entries that expire; false: those that stay.")

    def query(self) -> EntryQuery:
        try:
            prefix = None if self.address is None else parse_prefix(self.address)
        except ValueError as error:
            problem = Problem("?address", str(error))
            raise InvalidInput(f"?address: {error}", "", (problem,), "invalid_query") from None
        return EntryQuery(prefix, self.comment, self.expires)


def _page_json(items: list[dict[str, Any]], total: int, page: Page) -> Response:
    return JsonResponse(
        {
            "items": items,
            "total": total,
            "page": page.page,
            "page_size": page.page_size,
            "total_pages": -(-total // page.page_size),
        }
    )


@router.get("", response_model=schemas.SetPage, responses=problems(*READ_PROBLEMS), summary="List sets")
def list_sets(running: InService, page: Annotated[Page, Query()]) -> Response:
    """By name."""
    views = running.firewall.sets((page.page - 1) * page.page_size, page.page_size)
    total = len(running.firewall.set_sizes())
    return _page_json([set_body.set_json(each) for each in views], total, page)


@router.get(
    "/{name}",
    response_model=schemas.AddressSet,
    responses=problems(404, *READ_PROBLEMS),
    summary="Read a set",
    dependencies=[NO_QUERY],
)
def read_set(running: InService, name: str) -> Response:
    """How many entries it has, and which rules name it."""
    return JsonResponse(set_body.set_json(running.firewall.set(name)))


@router.put(
    "/{name}",
    status_code=201,
    responses={
        **tried(schemas.AddressSet, "It was there already."),
        201: {
            "model": schemas.AddressSet,
            "description": "Made.",
            "headers": {
                "Location": {"description": "Where it is.", "schema": {"type": "string"}},
                **CONFIRM_HEADERS,
            },
        },
        **problems(*CHANGE_PROBLEMS),
    },
    summary="Make a set, or describe it anew",
)
async def put_set(
    running: InService, asked: Asked, name: str, body: schemas.SetRequest | None = None
) -> Response:
    """Entries stay as they are. A rule names the set as `@name`."""
    try:
        parse_id(name)
    except ValueError as error:
        raise InvalidInput(
            f"{name!r} is no name of a set: it {error}", "choose another", (), "invalid_set"
        ) from None
    description = None if body is None else body.description
    return await perform(running, asked, partial(running.firewall.put_set, name, description), _put)


def _put(outcome: tuple[SetView, bool]) -> Response:
    view, created = outcome
    if not created:
        return JsonResponse(set_body.set_json(view))
    return JsonResponse(set_body.set_json(view), 201, {"Location": f"/v1/sets/{view.name}"})


@router.delete(
    "/{name}",
    status_code=204,
    responses={
        **tried(None, "Nothing was deleted."),
        204: {"description": "Deleted.", "headers": CONFIRM_HEADERS},
        **problems(404, *CHANGE_PROBLEMS),
    },
    summary="Delete a set",
)
async def delete_set(running: InService, asked: Asked, name: str) -> Response:
    """With its entries. 409 while rules name it."""
    return await perform(running, asked, partial(running.firewall.delete_set, name), _deleted)


def _deleted(_: None) -> Response:
    return Response(status_code=204)


@router.get(
    "/{name}/entries",
    response_model=schemas.EntryPage,
    responses=problems(404, *READ_PROBLEMS),
    summary="List entries of a set",
)
def list_entries(running: InService, name: str, filters: Annotated[EntryFilters, Query()]) -> Response:
    """A page in the order of addresses, of those that fit every filter."""
    offset = (filters.page - 1) * filters.page_size
    views, total = running.firewall.entries(name, filters.query(), offset, filters.page_size)
    return _page_json([set_body.entry_json(each) for each in views], total, filters)


async def _read(body: schemas.EntriesRequest) -> list[EntryColumns]:
    if len(body.entries) > MOST_ENTRIES:
        raise RequestRefused(
            413,
            "too_many_entries",
            f"the body has {len(body.entries):,} entries; {MOST_ENTRIES:,} are the most",
            "send several bodies",
        )
    arguments = body.entries, body.ttl, body.comment, time.time()
    if len(body.entries) <= _FEW:
        return set_body.read_entries(*arguments)
    return await asyncio.to_thread(set_body.read_entries, *arguments)


def _changed(outcome: EntriesOutcome) -> Response:
    return JsonResponse(set_body.outcome_json(outcome))


@router.post(
    "/{name}/entries",
    responses={**tried(schemas.EntriesAnswer), **problems(404, *CHANGE_PROBLEMS)},
    summary="Add entries to a set",
)
async def add_entries(running: InService, asked: Asked, name: str, body: schemas.EntriesRequest) -> Response:
    """One or many, all or none. An entry that is there already lives on from now with the ttl that comes with it;
    without one it stays until it is deleted."""
    columns = await _read(body)
    return await perform(running, asked, partial(running.firewall.add_entries, name, columns), _changed)


@router.put(
    "/{name}/entries",
    responses={**tried(schemas.EntriesAnswer), **problems(404, *CHANGE_PROBLEMS)},
    summary="Replace all entries of a set",
)
async def replace_entries(
    running: InService, asked: Asked, name: str, body: schemas.EntriesRequest
) -> Response:
    """At one moment for packets: none meets a part of the old and a part of the new."""
    columns = await _read(body)
    return await perform(running, asked, partial(running.firewall.replace_entries, name, columns), _changed)


class DeleteQuery(ChangeQuery):
    address: list[str] = Field([], description="Which; repeat it for several. Absent: those of the body.")


@router.delete(
    "/{name}/entries",
    responses={**tried(schemas.EntriesAnswer), **problems(404, *CHANGE_PROBLEMS)},
    summary="Delete entries of a set",
    openapi_extra={
        "requestBody": {
            "required": False,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/EntriesRequest"}}},
        }
    },
)
async def delete_entries(
    request: Request,
    running: InService,
    name: str,
    query: Annotated[DeleteQuery, Query()],
    prefer: Prefer = None,
) -> Response:
    """Just these, not what lies in them; those that are not there are counted as missing."""
    if query.address:
        columns = set_body.read_addresses(query.address)
    elif not await request.body():
        problem = Problem("?address", "is missing, and so is a body with entries")
        raise InvalidInput(
            f"{problem.pointer}: {problem.detail}",
            "name the entries that shall go",
            (problem,),
            "invalid_query",
        )
    else:
        columns = await _read(await _entries_body(request))
    asked = caution(request.scope, query, prefer)
    return await perform(running, asked, partial(running.firewall.delete_entries, name, columns), _changed)


async def _entries_body(request: Request) -> schemas.EntriesRequest:
    content = await request.json()
    if not isinstance(content, dict) or not isinstance(content.get("entries"), list):
        problem = Problem("/entries", "must be a list of the entries that shall go")
        raise InvalidInput(f"{problem.pointer}: {problem.detail}", "see /docs", (problem,), "invalid_body")
    return schemas.EntriesRequest(entries=content["entries"], ttl=None, comment=None)
