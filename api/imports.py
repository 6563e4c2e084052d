"""/v1/rules/import: a plain list of addresses becomes rules, a million in one change; or a rule a line.

Owns the query and reading the body; parsing a list is firewall.address_list's, of rules api.rule_lines'.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from api import schemas
from api.asking import ChangeQuery, Prefer, caution, perform, tried
from api.json_body import JsonResponse
from api.openapi import CHANGE_PROBLEMS, problems
from api.rule_lines import RuleLines
from api.rules import MOST_RULES, too_many_rules
from api.running import InService, Running
from firewall.address_list import parse_list
from firewall.caution import Caution
from firewall.errors import FirewallError, InvalidInput, Problem
from firewall.rule import DEFAULT_PRIORITY, PRIORITY_MAX, Action
from firewall.view import BatchOutcome

RULES_A_LINE = "application/x-ndjson"
_EMPTY = "send it with Content-Type: text/plain, an address a line; an empty list needs that header too"
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
                "text/plain": {"schema": {"type": "string"}, "example": "203.0.113.7\n198.51.100.0/24\n"},
                RULES_A_LINE: {
                    "schema": {"type": "string"},
                    "example": '{"id": "a", "sources": ["203.0.113.7"]}\n{"id": "b", "protocols": ["udp"]}\n',
                },
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

    With the content type application/x-ndjson: a rule a line, as POST /v1/rules takes it, all in one change. Action,
    priority and direction are not for these, and 200,000 of them are the most.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == RULES_A_LINE:
        return await _import_rules(request, running, caution(request.scope, query, prefer))
    body = await request.body()
    if not body and not media_type:
        raise InvalidInput("there is no list in the request", _EMPTY, code="invalid_list")
    firewall = running.firewall
    columns = await asyncio.to_thread(lambda: parse_list(_text(body)))
    bring = partial(firewall.import_list, columns, query.action, query.priority, query.direction)
    return await perform(running, caution(request.scope, query, prefer), bring, JsonResponse)


async def _import_rules(request: Request, running: Running, asking: Caution) -> Response:
    for_lists = [name for name in request.query_params if name not in ChangeQuery.model_fields]
    if for_lists:
        problems_found = tuple(Problem(f"?{name}", "is for plain lists") for name in for_lists)
        hint = "a line of JSON says for itself what its rule does"
        raise InvalidInput(
            f"{problems_found[0].pointer}: is for plain lists", hint, problems_found, "invalid_query"
        )
    lines = RuleLines(running.firewall.new_rule_id, time.time())
    async for part in request.stream():
        await asyncio.to_thread(lines.feed, part)
        if len(lines.rules) > MOST_RULES:
            raise too_many_rules(f"the body has more than {MOST_RULES:,} rules")
    rules = await asyncio.to_thread(lines.end)
    if len(rules) > MOST_RULES:
        raise too_many_rules(f"the body has more than {MOST_RULES:,} rules")
    try:
        return await perform(running, asking, partial(running.firewall.batch, rules, []), _imported)
    except FirewallError as error:
        raise lines.placed(error) from None


def _imported(outcome: BatchOutcome) -> Response:
    return JsonResponse({"added": outcome.added, "unchanged": outcome.unchanged})


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the list is not UTF-8 text: {error}", code="invalid_list") from None
