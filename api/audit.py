"""GET /v1/audit: who changed what, and whose access was denied.

Owns the query and the JSON. Entries are written by the changes themselves (firewall/audited.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from api import schemas
from api.json_body import JsonResponse
from api.openapi import READ_PROBLEMS, problems
from api.running import InService
from firewall.audit_entry import AuditEntry
from firewall.audit_log import AuditQuery
from firewall.errors import InvalidInput, Problem
from firewall.rule import format_time, parse_time

router = APIRouter(prefix="/v1/audit", tags=["audit"])
MOST_ID = 1 << 62


class AuditFilters(BaseModel):
    """The query."""

    model_config = ConfigDict(extra="forbid")

    page_size: int = Field(100, ge=1, le=1000)
    before: int | None = Field(
        None, ge=1, le=MOST_ID, description="Entries older than this id: `next_before` of the page before."
    )
    kind: Literal["change", "access"] | None = Field(None, description="access: what was denied.")
    actor: str | None = Field(None, examples=["token:ci", "uid:0", "service"])
    action: str | None = Field(
        None, description="This one and those below it: rule is rule.add too.", examples=["rule.add"]
    )
    target: str | None = Field(None, description="Such as the id of a rule.")
    request_id: str | None = None
    since: str | None = Field(None, description="RFC 3339.", examples=["2030-01-01T00:00:00Z"])
    until: str | None = Field(None, description="RFC 3339, before this moment.")

    def query(self) -> AuditQuery:
        return AuditQuery(
            kind=self.kind,
            actor=self.actor,
            action=self.action,
            target=self.target,
            request_id=self.request_id,
            since=_moment("since", self.since),
            until=_moment("until", self.until),
            before=self.before,
        )


def _moment(name: str, text: str | None) -> float | None:
    try:
        return None if text is None else parse_time(text)
    except ValueError as error:
        problem = Problem(f"?{name}", str(error))
        raise InvalidInput(f"?{name}: {error}", "", (problem,), "invalid_query") from None


def entry_json(entry: AuditEntry) -> dict[str, Any]:
    by = entry.origin
    return {
        "id": entry.id,
        "time": format_time(round(entry.at, 3)),
        "kind": entry.kind,
        "actor": by.actor,
        "source": by.source or None,
        "request_id": by.request_id or None,
        "call": by.call or None,
        "reason": by.reason or None,
        "action": entry.action,
        "target": entry.target or None,
        "before": _parsed(entry.before),
        "after": _parsed(entry.after),
        "summary": _parsed(entry.summary),
    }


def _parsed(text: str | None) -> orjson.Fragment | None:
    """JSON as it was stored."""
    return None if text is None else orjson.Fragment(text)


@router.get(
    "",
    response_model=schemas.AuditPage,
    responses=problems(*READ_PROBLEMS),
    summary="Read the audit",
)
def read_audit(running: InService, filters: Annotated[AuditFilters, Query()]) -> Response:
    """The newest first. Pages go on by id, so that none shifts while entries are added."""
    entries = running.firewall.audit(filters.query(), filters.page_size + 1)
    page = entries[: filters.page_size]
    is_last = len(entries) <= filters.page_size
    content = {
        "items": [entry_json(each) for each in page],
        "next_before": None if is_last else page[-1].id,
    }
    return JsonResponse(content)
