"""For whom the request that is under way acts, and what it says of itself: its id, its reason.

Owns the two headers and the variable by which the rest of the API reads it, so that no route has to pass it on.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import count

from starlette.datastructures import Headers

from api.errors import RequestRefused
from firewall.audit_entry import Origin
from firewall.errors import Problem

REQUEST_ID, REASON = "x-request-id", "x-reason"
MOST_REASON = 500
_NUMBERS = count(1)
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Acting:
    """`scope`: what it may do. `may_go_on`: whether what let the request in is still in force. An answer that goes on
    for long asks it."""

    origin: Origin
    scope: str
    may_go_on: Callable[[], bool]


ACTING: ContextVar[Acting | None] = ContextVar("acting", default=None)


def request_id_of(headers: Headers) -> str:
    """The client's, if it is one, else a new one: of this process, and its number."""
    given = headers.get(REQUEST_ID, "")
    return given if _ID.fullmatch(given) else f"{_process()}{next(_NUMBERS):08x}"


@cache
def _process() -> str:
    return secrets.token_hex(4)


def reason_of(headers: Headers) -> str:
    """Raises RequestRefused where it is too long."""
    given = headers.get(REASON)
    if not given:
        return ""
    try:
        text = given.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        text = given
    if len(text) > MOST_REASON:
        detail = f"X-Reason has {len(text)} characters; {MOST_REASON} are the most"
        raise RequestRefused(422, "invalid_header", detail, problems=(Problem("X-Reason", "is too long"),))
    return text
