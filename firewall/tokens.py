"""Bearer tokens: what one is, and whether a text is one that was made here.

Owns their form, the check, and when they were used. A token is `efw_`, a public id by which it is found, and 256
random bits. Only its SHA-256 is kept: a text with so much chance in it cannot be guessed from a digest, however fast
that is to compute, so a slow password hash would cost time at every request and gain nothing (docs/adr/0017). Knows no
store and no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from firewall.errors import NotAuthenticated
from firewall.rule import format_time

PREFIX = "efw_"
SCOPES = ("read", "rules", "admin")  # each may what those before it may
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
USED_WITHIN_S = 60.0
_ID_BYTES, _SECRET_BYTES = 6, 32
_FORM = re.compile(r"efw_([0-9a-f]{12})_[0-9a-f]{64}")
_HINT = "make one with: ebpf-fw token create"


@dataclass(frozen=True, slots=True)
class Token:
    """Times are seconds since 1970, UTC; `created_by`: an actor, as in the audit."""

    name: str
    public_id: str
    digest: bytes
    scope: str
    created_at: float
    created_by: str
    expires_at: float | None

    def is_over(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True)
class NewToken:
    """`text`: the token itself, to be shown once."""

    token: Token
    text: str


def new_text() -> tuple[str, str]:
    """A new token and its public id."""
    public_id = secrets.token_hex(_ID_BYTES)
    return f"{PREFIX}{public_id}_{secrets.token_hex(_SECRET_BYTES)}", public_id


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


# Compared where there is no token with the id, so that the answer does not come sooner.
_NONE = Token("", "", digest_of(secrets.token_hex(_SECRET_BYTES)), "", 0.0, "", None)


class Tokens:
    """All that are in force. Never changed: a change makes another."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._by_id = {each.public_id: each for each in tokens}

    def all(self) -> list[Token]:
        return sorted(self._by_id.values(), key=lambda each: (each.created_at, each.name))

    def named(self, name: str) -> Token | None:
        return next((each for each in self._by_id.values() if each.name == name), None)

    def check(self, text: str, now: float) -> Token:
        """The token that a text is. Raises NotAuthenticated."""
        form = _FORM.fullmatch(text)
        token = self._by_id.get(form[1], _NONE) if form else _NONE
        if not hmac.compare_digest(digest_of(text), token.digest):
            raise NotAuthenticated("there is no such token", _HINT)
        if token.is_over(now):
            raise _expired(token)
        return token

    def is_valid(self, public_id: str, now: float) -> bool:
        """Whether a token that was right is still in force."""
        token = self._by_id.get(public_id)
        return token is not None and not token.is_over(now)


class Uses:
    """When tokens were last used, by their public ids, to the minute: noting costs a request next to nothing, and
    what is due to be written changes once a minute at most. Noted by one thread, saved by another."""

    def __init__(self, saved: Mapping[str, float]) -> None:
        self._saved = dict(saved)
        self._noted = dict(saved)

    def note(self, token: Token, now: float) -> None:
        if abs(now - self._noted.get(token.public_id, 0.0)) >= USED_WITHIN_S:
            self._noted[token.public_id] = now

    def last(self, token: Token) -> float | None:
        return self._noted.get(token.public_id)

    def due(self) -> dict[str, float]:
        """What is not saved."""
        return {each: at for each, at in list(self._noted.items()) if self._saved.get(each) != at}

    def saved(self, what: Mapping[str, float]) -> None:
        self._saved.update(what)

    def forget(self, token: Token) -> None:
        for each in (self._noted, self._saved):
            each.pop(token.public_id, None)


def _expired(token: Token) -> NotAuthenticated:
    when = format_time(token.expires_at or 0)
    return NotAuthenticated(f"the token {token.name!r} expired at {when}", _HINT, code="token_expired")
