"""/v1/rules/import: a plain list of addresses becomes rules, a million in one change.

Owns the query and reading the body; parsing the list is firewall.address_list's.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from api import schemas
from api.asking import ChangeQuery, Prefer, caution, perform, tried
from api.json_body import JsonResponse
from api.openapi import CHANGE_PROBLEMS, problems
from api.running import InService
from firewall.address_list import parse_list
from firewall.errors import InvalidInput
from firewall.rule import DEFAULT_PRIORITY, PRIORITY_MAX, Action

router = APIRouter(prefix="/v1/rules", tags=["rules"])


class ImportQuery(ChangeQuery):
    """What all rules of a list have in common."""

    action: Action = "drop"
    priority: int = Field(DEFAULT_PRIORITY, ge=0, le=PRIORITY_MAX)
    direction: Literal["ingress", "egress"] = Field(
        "ingress", description="ingress: the addresses are sources; egress: destinations."
    )


@router.post(
    "/import",
    responses={**tried(schemas.ImportAnswer), **problems(*CHANGE_PROBLEMS)},
    summary="Import a list of addresses",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": "203.0.113.7\n198.51.100.0/24\n"}
            },
        }
    },
)
async def import_list(
    request: Request,
    running: InService,
    query: Annotated[ImportQuery, Query()],
    prefer: Prefer = None,
) -> Response:
    """One rule for each address or CIDR of a text (one a line, `#` and `;` start comments), all in one change.

    Addresses that have a rule of this action and priority already are left as they are, so the same list again
    changes nothing. Ids are made by the service; GET /v1/rules?address=... finds a rule by its address.
    """
    body = await request.body()
    firewall = running.firewall
    columns = await asyncio.to_thread(lambda: parse_list(_text(body)))
    bring = partial(firewall.import_list, columns, query.action, query.priority, query.direction)
    return await perform(running, caution(request.scope, query, prefer), bring, JsonResponse)


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the list is not UTF-8 text: {error}", code="invalid_list") from None
