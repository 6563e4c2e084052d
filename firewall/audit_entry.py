"""Who asked for a change, and what the audit keeps of it. Plain values."""

from __future__ import annotations

from typing import NamedTuple

CHANGE, ACCESS = "change", "access"
KINDS = (CHANGE, ACCESS)


class Origin(NamedTuple):
    """`actor`: `token:NAME`, `uid:NUMBER`, `certificate:NAME`, `anonymous` or `service`. `source`: `address:port`, or
    `unix:pid=NUMBER`. `call`: method and path. `reason`: what the client gave (X-Reason)."""

    actor: str
    source: str = ""
    request_id: str = ""
    call: str = ""
    reason: str = ""


SERVICE = Origin("service")


class AuditEntry(NamedTuple):
    """`kind`: a change, or an access that was denied. `target`: what it is about, empty for many things at once.
    `before`, `after`, `summary`: JSON, None where there is nothing to say."""

    id: int
    at: float
    kind: str
    origin: Origin
    action: str
    target: str
    before: str | None
    after: str | None
    summary: str | None
