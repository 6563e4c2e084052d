"""/v1/rules: one rule, a page of rules, many rules in one change.

Owns these addresses and their parameters. What a body means is api.rule_body's, what a change does is the
enforcer's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from api import rule_body, schemas
from api.asking import CONFIRM_HEADERS, Asked, perform, tried
from api.errors import RequestRefused
from api.json_body import JsonResponse, JsonRoute
from api.openapi import CHANGE_PROBLEMS, READ_PROBLEMS, problems
from api.running import NO_QUERY, InService
from firewall.address import parse_prefix
from firewall.errors import InvalidInput, Problem
from firewall.match import parse_duration
from firewall.rule import Action, Direction, format_time
from firewall.view import BatchOutcome, RuleQuery, RuleView, RuleWarning

T = TypeVar("T")
router = APIRouter(prefix="/v1/rules", tags=["rules"], route_class=JsonRoute)
MOST_RULES = 200_000  # of one batch: half a gigabyte while it is made
FEW_RULES = 100  # read on the event loop; more of them in a thread


class RuleFilters(BaseModel):
    """The query of a listing."""

    model_config = ConfigDict(extra="forbid")

    page: int = Field(1, ge=1, le=1 << 31)
    page_size: int = Field(100, ge=1, le=1000)
    direction: Direction | None = Field(None, description="Rules with just this direction.")
    action: Action | None = None
    enabled: bool | None = None
    label: str | None = Field(None, description="`key`, or `key=value`.", examples=["team=web"])
    address: str | None = Field(
        None,
        description="Address or CIDR: rules whose sources or destinations cover it.",
        examples=["203.0.113.7"],
    )
    unused_for: str | None = Field(
        None,
        description="Enabled rules that are as old as this (or whose counters were reset so long ago) and matched no"
        " packet since: seconds, or text such as 90s, 1h30m, 30d.",
        examples=["30d"],
    )

    def query(self) -> RuleQuery:
        key, equals, value = (self.label or "").partition("=")
        label = (key, value if equals else None) if key else None
        prefix = _parsed("address", self.address, parse_prefix)
        unused_for_s = _parsed("unused_for", self.unused_for, parse_duration)
        return RuleQuery(self.direction, self.action, self.enabled, label, prefix, unused_for_s)


def _parsed(name: str, text: str | None, parse: Callable[[str], T]) -> T | None:
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        problem = Problem(f"?{name}", str(error))
        raise InvalidInput(f"?{name}: {error}", "", (problem,), "invalid_query") from None


def rule_json(view: RuleView) -> dict[str, Any]:
    last_hit = None if view.last_hit is None else format_time(view.last_hit)
    return {
        **view.rule.fields(),
        "created_at": format_time(view.created_at),
        "updated_at": format_time(view.updated_at),
        "stats": {"packets": view.packets, "bytes": view.bytes, "last_hit": last_hit},
    }


def whole_json(view: RuleView) -> dict[str, Any]:
    """One rule, with what may be wrong with it."""
    return {**rule_json(view), "warnings": view.warnings}


@router.get("", response_model=schemas.RulePage, responses=problems(*READ_PROBLEMS), summary="List rules")
def list_rules(running: InService, filters: Annotated[RuleFilters, Query()]) -> Response:
    """A page of rules in the order of their creation, of those that fit every filter."""
    offset = (filters.page - 1) * filters.page_size
    views, total = running.firewall.rules(filters.query(), offset, filters.page_size)
    page = {
        "items": [rule_json(view) for view in views],
        "total": total,
        "page": filters.page,
        "page_size": filters.page_size,
        "total_pages": -(-total // filters.page_size),
    }
    return JsonResponse(page)


def warnings_json(warnings: Sequence[tuple[str, RuleWarning]]) -> list[dict[str, Any]]:
    """Of many rules: each with the id of the rule that it is about."""
    return [{"id": rule_id, **asdict(each)} for rule_id, each in warnings]


ADDED: dict[int | str, dict[str, Any]] = {
    **tried(schemas.WarnedRule, "The same rule was there already; nothing changed."),
    201: {
        "description": "Added.",
        "headers": {
            "Location": {"description": "Where the rule is.", "schema": {"type": "string"}},
            **CONFIRM_HEADERS,
        },
    },
}


@router.post(
    "",
    status_code=201,
    response_model=schemas.WarnedRule,
    responses={**ADDED, **problems(*CHANGE_PROBLEMS)},
    summary="Add a rule",
)
async def add_rule(running: InService, asked: Asked, fields: schemas.RuleBody) -> Response:
    """Answered when the rule is durable and in the kernel. The same id with another body is a 409."""
    rule = rule_body.read_new(fields, running.firewall.new_rule_id, time.time())
    return await perform(running, asked, partial(running.firewall.add, rule), _added)


def _added(outcome: tuple[RuleView, bool]) -> Response:
    view, created = outcome
    if not created:
        return JsonResponse(whole_json(view))
    return JsonResponse(whole_json(view), 201, {"Location": f"/v1/rules/{view.rule.id}"})


def too_many_rules(detail: str) -> RequestRefused:
    hint = "send several batches, or a plain list of addresses to /v1/rules/import"
    return RequestRefused(413, "too_many_rules", detail, hint)


def _changed(view: RuleView) -> Response:
    return JsonResponse(whole_json(view))


def _batched(outcome: BatchOutcome) -> Response:
    answer = {
        "added": outcome.added,
        "deleted": outcome.deleted,
        "unchanged": outcome.unchanged,
        "ids": outcome.ids,
        "warnings": warnings_json(outcome.warnings),
    }
    return JsonResponse(answer)


def _deleted(_: None) -> Response:
    return Response(status_code=204)


@router.post(
    "/batch",
    responses={**tried(schemas.BatchAnswer), **problems(404, *CHANGE_PROBLEMS)},
    summary="Add and delete many rules in one change",
)
async def change_rules(running: InService, asked: Asked, body: schemas.BatchRequest) -> Response:
    """All or nothing, and for packets at one moment. Deletes come before adds."""
    if len(body.add) + len(body.delete) > MOST_RULES:
        raise too_many_rules(
            f"the batch has {len(body.add) + len(body.delete):,} rules; {MOST_RULES:,} are the most"
        )
    arguments = body.add, "/add", running.firewall.new_rule_id, time.time()
    if len(body.add) <= FEW_RULES:
        rules = rule_body.read_many(*arguments)
    else:
        rules = await asyncio.to_thread(rule_body.read_many, *arguments)
    return await perform(running, asked, partial(running.firewall.batch, rules, body.delete), _batched)


@router.get(
    "/{rule_id}",
    response_model=schemas.WarnedRule,
    responses=problems(404, *READ_PROBLEMS),
    summary="Read a rule",
    dependencies=[NO_QUERY],
)
def read_rule(running: InService, rule_id: str) -> Response:
    """The rule in canonical text, with what it has counted."""
    return JsonResponse(whole_json(running.firewall.rule(rule_id)))


@router.put(
    "/{rule_id}",
    responses={**tried(schemas.WarnedRule), **problems(404, *CHANGE_PROBLEMS)},
    summary="Replace a rule",
)
async def replace_rule(running: InService, asked: Asked, rule_id: str, fields: schemas.RuleBody) -> Response:
    """Fields that are absent get their defaults. What the rule has counted stays. The id cannot change."""
    rule = rule_body.read_whole(fields, rule_id, time.time())
    return await perform(running, asked, partial(running.firewall.replace, rule), _changed)


@router.patch(
    "/{rule_id}",
    responses={**tried(schemas.WarnedRule), **problems(404, *CHANGE_PROBLEMS)},
    summary="Change fields of a rule",
)
async def patch_rule(running: InService, asked: Asked, rule_id: str, patch: schemas.PatchBody) -> Response:
    """JSON merge patch (RFC 7396): null resets a field to its default, lists are replaced as a whole. A ttl
    starts again only if the patch names it."""
    now = time.time()
    edit = partial(running.firewall.edit, rule_id, lambda rule: rule_body.patched(rule, patch, now))
    return await perform(running, asked, edit, _changed)


@router.post(
    "/{rule_id}/promote",
    responses={**tried(schemas.WarnedRule), **problems(404, *CHANGE_PROBLEMS)},
    summary="Make a rule that observes decide",
)
async def promote_rule(running: InService, asked: Asked, rule_id: str) -> Response:
    """Sets its mode to enforce; for one that is, nothing changes. What it has counted stays. There is no body."""
    return await perform(running, asked, partial(running.firewall.promote, rule_id), _changed)


@router.delete(
    "/{rule_id}",
    status_code=204,
    responses={
        **tried(None, "Nothing was deleted."),
        204: {"description": "Deleted.", "headers": CONFIRM_HEADERS},
        **problems(404, *CHANGE_PROBLEMS),
    },
    summary="Delete a rule",
)
async def delete_rule(running: InService, asked: Asked, rule_id: str) -> Response:
    """Answered when no packet meets the rule any more."""
    return await perform(running, asked, partial(running.firewall.delete, rule_id), _deleted)


@router.post(
    "/{rule_id}/reset-counters",
    response_model=schemas.WarnedRule,
    responses=problems(404, *CHANGE_PROBLEMS),
    summary="Let a rule count from 0 again",
    dependencies=[NO_QUERY],
)
async def reset_counters(running: InService, rule_id: str) -> Response:
    """Packets and bytes are 0 and `last_hit` is null until the next packet. No packet is lost: what is counted at this
    moment is counted before it or after it. The counters of interfaces go on."""
    return JsonResponse(whole_json(await running.change(running.firewall.reset_counters, rule_id)))
