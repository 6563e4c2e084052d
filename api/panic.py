"""/v1/panic: block everything but never_drop and the management connections, for a time.

Owns this address. What is kept, and the way back, are the enforcer's.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from api import schemas
from api.json_body import JsonResponse, JsonRoute
from api.openapi import CHANGE_PROBLEMS, READ_PROBLEMS, problems
from api.running import NO_QUERY, InService
from firewall.errors import InvalidInput, Problem
from firewall.match import parse_duration
from firewall.rule import format_time
from firewall.shield import PANIC_DEFAULT_S, PANIC_MOST_S
from firewall.view import PanicView

router = APIRouter(prefix="/v1/panic", tags=["panic"], route_class=JsonRoute, dependencies=[NO_QUERY])


def panic_json(view: PanicView) -> dict[str, Any]:
    until = None if view.until is None else format_time(round(view.until, 3))
    return {"on": view.on, "until": until, "left_s": round(view.left_s, 3), "connections": view.connections}


@router.get("", response_model=schemas.PanicState, responses=problems(*READ_PROBLEMS), summary="Read panic")
def read_panic(running: InService) -> Response:
    """Whether it is on, and until when."""
    return JsonResponse(panic_json(running.firewall.panic()))


@router.post(
    "",
    response_model=schemas.PanicState,
    responses=problems(409, *CHANGE_PROBLEMS),
    summary="Panic on or off",
)
async def set_panic(running: InService, body: schemas.PanicRequest) -> Response:
    """On: blocks all traffic but never_drop, the SSH sessions and API connections of this moment, and what every host
    needs (ARP, neighbour discovery, DHCP, path MTU). It ends by itself. Off: the rules are in force again at once."""
    if body.on:
        view = await running.change(running.firewall.panic_on, _seconds(body.ttl))
    else:
        if body.ttl is not None:
            raise _wrong("is of use with on only")
        view = await running.change(running.firewall.panic_off)
    return JsonResponse(panic_json(view))


def _seconds(ttl: int | str | None) -> int:
    if ttl is None:
        return PANIC_DEFAULT_S
    try:
        seconds = parse_duration(ttl)
    except ValueError as error:
        raise _wrong(str(error)) from None
    if seconds > PANIC_MOST_S:
        raise _wrong(f"must be at most {PANIC_MOST_S} seconds (a day)")
    return seconds


def _wrong(detail: str) -> InvalidInput:
    problems = (Problem("/ttl", detail),)
    return InvalidInput(f"/ttl: {detail}", 'such as {"on": true, "ttl": "10m"}', problems, "invalid_body")
