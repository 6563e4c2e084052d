"""Why a list was not taken.

Owns the reasons, which are labels of a metric and words of the API: `REASONS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

REASONS = {
    "unreachable": "no connection, no such name, a broken or untrusted TLS, an answer that broke off",
    "timeout": "it took longer than timeout",
    "http_status": "an answer other than 200 or 304",
    "redirect": "too many redirects, or one to what is no http or https",
    "too_large": "more than max_bytes",
    "unreadable": "a file that cannot be read, or a packing that was not asked for",
    "broken": "not a list, not whole, or more bad lines than good ones",
    "empty": "nothing in it",
    "shrunk": "it lost more than max_shrink of what was there",
    "refused": "the firewall refused it: a full table, a set of somebody else",
}


@dataclass
class FeedFailed(Exception):
    """`reason`: one of REASONS; `detail`, `hint` for people; `retry_after_s`: what the server asked for."""

    reason: str
    detail: str
    hint: str = ""
    retry_after_s: float | None = field(default=None)

    def __str__(self) -> str:
        return self.detail if not self.hint else f"{self.detail} ({self.hint})"
