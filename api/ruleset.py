"""/v1/ruleset: every rule at once, read as a stream and replaced as one change.

Owns the entity tag's way over HTTP (RFC 9110, 13.1); comparing it is the enforcer's, inside the change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Response
from starlette.responses import StreamingResponse

from api import schemas
from api.asking import CONFIRM_HEADERS, Asked, perform, tried
from api.export import bounded
from api.json_body import JsonResponse, JsonRoute
from api.openapi import CHANGE_PROBLEMS, READ_PROBLEMS, problems
from api.rule_body import read_many
from api.rules import warnings_json
from api.running import NO_QUERY, InService
from firewall.rule import Rule
from firewall.view import BatchOutcome

router = APIRouter(prefix="/v1/ruleset", tags=["ruleset"], route_class=JsonRoute)
CHUNK_RULES = 1000

ETAG: dict[str, Any] = {
    "headers": {"ETag": {"description": "Changes with every change of a rule.", "schema": {"type": "string"}}}
}
REPLACED = tried(schemas.RulesetAnswer)
REPLACED[200]["headers"] = {**ETAG["headers"], **CONFIRM_HEADERS}
IfMatch = Annotated[
    str | None, Header(description="An ETag, or *: replace only if the rule set is still this one, else 412.")
]
IfNoneMatch = Annotated[str | None, Header(description="An ETag: 304 if the rule set is still this one.")]


@router.get(
    "",
    response_model=schemas.Ruleset,
    responses={200: ETAG, 304: {"description": "As it was."}, **problems(*READ_PROBLEMS)},
    summary="Export every rule",
    dependencies=[NO_QUERY],
)
def export_ruleset(running: InService, if_none_match: IfNoneMatch = None) -> Response:
    """What can be written of each rule, in the order of creation: what PUT takes."""
    current = running.firewall.etag()
    known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if current in known or "*" in known:
        return Response(status_code=304, headers={"ETag": current})
    rules, etag = running.firewall.export()
    return StreamingResponse(
        bounded(ruleset_json(rules)), media_type="application/json", headers={"ETag": etag}
    )


def ruleset_json(rules: Iterator[Rule]) -> Iterator[bytes]:
    """`{"rules":[...]}` in parts, so that a large rule set is never in memory as JSON."""
    separator = b'{"rules":['
    while some := list(islice(rules, CHUNK_RULES)):
        yield separator + b",".join(orjson.dumps(rule.fields()) for rule in some)
        separator = b","
    yield b"]}" if separator == b"," else b'{"rules":[]}'


@router.put(
    "",
    responses={**REPLACED, **problems(412, *CHANGE_PROBLEMS)},
    summary="Replace every rule in one change",
)
async def replace_ruleset(
    running: InService, asked: Asked, body: schemas.RulesetRequest, if_match: IfMatch = None
) -> Response:
    """Rules that are not in the body are deleted; rules that stay as they were keep what they counted."""
    firewall = running.firewall
    rules = await asyncio.to_thread(read_many, body.rules, "/rules", firewall.new_rule_id, time.time())

    def replace_all() -> tuple[BatchOutcome, str]:
        return firewall.replace_all(rules, if_match), firewall.etag()

    def answer(replaced: tuple[BatchOutcome, str]) -> Response:
        outcome, etag = replaced
        content = {
            "rules": len(rules),
            "added": outcome.added,
            "deleted": outcome.deleted,
            "unchanged": outcome.unchanged,
            "warnings": warnings_json(outcome.warnings),
        }
        return JsonResponse(content, headers={"ETag": etag})

    return await perform(running, asked, replace_all, answer)
