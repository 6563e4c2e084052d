"""/v1/tokens: who may use this API from elsewhere than its Unix socket.

Owns these addresses. A token's text is in one answer, the one that makes it, and nowhere else.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Response

from api import schemas
from api.json_body import JsonResponse, JsonRoute
from api.openapi import CHANGE_PROBLEMS, READ_PROBLEMS, problems
from api.running import NO_QUERY, InService
from firewall.errors import InvalidInput, Problem
from firewall.match import parse_duration
from firewall.rule import format_time, parse_time
from firewall.tokens import NewToken, Token

router = APIRouter(prefix="/v1/tokens", tags=["tokens"], route_class=JsonRoute, dependencies=[NO_QUERY])
_EXPIRY = '"ttl": "90d", or "expires_at": "2030-01-01T00:00:00Z"'


def token_json(token: Token, now: float, last_used: float | None = None) -> dict[str, Any]:
    expires_at = None if token.expires_at is None else format_time(round(token.expires_at, 3))
    return {
        "name": token.name,
        "scope": token.scope,
        "created_at": format_time(round(token.created_at, 3)),
        "created_by": token.created_by,
        "expires_at": expires_at,
        "expired": token.is_over(now),
        "last_used": None if last_used is None else format_time(int(last_used)),
    }


@router.get("", response_model=schemas.TokenList, responses=problems(*READ_PROBLEMS), summary="List tokens")
def list_tokens(running: InService) -> Response:
    """All that were not revoked, those that expired too, in the order of their creation."""
    now, firewall = time.time(), running.firewall
    items = [token_json(each, now, firewall.last_used(each)) for each in firewall.tokens.all()]
    return JsonResponse({"items": items, "total": len(items)})


@router.post(
    "",
    status_code=201,
    response_model=schemas.NewTokenState,
    responses=problems(*CHANGE_PROBLEMS),
    summary="Make a token",
)
async def create_token(running: InService, body: schemas.TokenRequest) -> Response:
    """Its text is in this answer alone: only a digest is kept. From the first token on, every TCP client needs one,
    unless the config says something else."""
    call = partial(running.firewall.create_token, body.name, body.scope, _expires_at(body))
    made: NewToken = await running.change(call)
    content = {**token_json(made.token, time.time()), "token": made.text}
    headers = {"Location": f"/v1/tokens/{made.token.name}", "Cache-Control": "no-store"}
    return JsonResponse(content, 201, headers)


@router.delete(
    "/{name}",
    status_code=204,
    responses={204: {"description": "Revoked."}, **problems(404, *CHANGE_PROBLEMS)},
    summary="Revoke a token",
)
async def revoke_token(running: InService, name: str) -> Response:
    """Answered when no request gets in with it any more. Events and captures that go on with it end within 15 s."""
    await running.change(running.firewall.revoke_token, name)
    return Response(status_code=204)


def _expires_at(body: schemas.TokenRequest) -> float | None:
    if body.ttl is not None and body.expires_at is not None:
        raise _wrong("expires_at", "is given beside ttl; one of them is enough")
    try:
        if body.ttl is not None:
            return round(time.time() + parse_duration(body.ttl), 3)
    except ValueError as error:
        raise _wrong("ttl", str(error)) from None
    if body.expires_at is None:
        return None
    try:
        moment = parse_time(body.expires_at)
    except ValueError as error:
        raise _wrong("expires_at", str(error)) from None
    if moment <= time.time():
        raise _wrong("expires_at", "has passed already")
    return moment


def _wrong(name: str, detail: str) -> InvalidInput:
    return InvalidInput(f"/{name}: {detail}", _EXPIRY, (Problem(f"/{name}", detail),), "invalid_body")
