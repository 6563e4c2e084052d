"""What a request needs: nothing, or one of the scopes read, rules and admin. The one table of it.

Owns no more than that. What is not in the table needs admin: a route that somebody adds is closed to all others until
it is named here, and a test says so.
"""

from __future__ import annotations

from typing import NamedTuple

from firewall.tokens import SCOPES

READ, RULES, ADMIN = SCOPES
OPEN = "open"
_READING = frozenset(("GET", "HEAD", "OPTIONS"))


class Needs(NamedTuple):
    reading: str
    changing: str


# By path: the longest that the request's begins with, whole segments. Events tell who talks to this host, as counters
# and rules do; captures hold what is said, and so they are the administrator's. The docs are the same on every host.
TABLE: dict[str, Needs] = {
    "/healthz": Needs(OPEN, OPEN),
    "/readyz": Needs(OPEN, OPEN),
    "/docs": Needs(OPEN, OPEN),
    "/openapi.json": Needs(OPEN, OPEN),
    "/metrics": Needs(READ, ADMIN),
    "/v1/rules": Needs(READ, RULES),
    "/v1/ruleset": Needs(READ, RULES),
    "/v1/sets": Needs(READ, RULES),
    "/v1/changes": Needs(READ, RULES),
    "/v1/confirm": Needs(READ, RULES),
    "/v1/rollback": Needs(READ, RULES),
    "/v1/test": Needs(READ, RULES),
    "/v1/analysis": Needs(READ, ADMIN),
    "/v1/status": Needs(READ, ADMIN),
    "/v1/counters": Needs(READ, ADMIN),
    "/v1/events": Needs(READ, ADMIN),
    "/v1/interfaces": Needs(READ, ADMIN),
    "/v1/panic": Needs(READ, ADMIN),
    "/v1/feeds": Needs(READ, ADMIN),  # a feed makes the service fetch what its address says
    "/v1/crowdsec": Needs(READ, ADMIN),
    "/v1/capture": Needs(ADMIN, ADMIN),
    "/v1/tokens": Needs(ADMIN, ADMIN),
    "/v1/audit": Needs(ADMIN, ADMIN),
}
_OTHER = Needs(ADMIN, ADMIN)


def needed(method: str, path: str) -> str:
    """The scope that a request needs, or OPEN."""
    needs = _longest(path)
    return needs.reading if method in _READING else needs.changing


def is_listed(path: str) -> bool:
    return _longest(path) is not _OTHER


def _longest(path: str) -> Needs:
    while path:
        if (found := TABLE.get(path)) is not None:
            return found
        path = path.rpartition("/")[0]
    return _OTHER


def suffices(has: str, needs: str) -> bool:
    return needs == OPEN or SCOPES.index(has) >= SCOPES.index(needs)
