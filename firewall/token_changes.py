"""Making and revoking tokens: changes like others, durable before they are answered, entered in the audit.

Owns the table of tokens. A token stays until it is revoked, also after it expired, so that its name tells what it was.
That one was ever made is remembered: revoking the last one must not open the API again.
"""

from __future__ import annotations

from functools import cached_property

from firewall.commit import Commits
from firewall.errors import AlreadyExists, Conflict, NotFound, Problem
from firewall.rule import format_time
from firewall.store_failures import Failures
from firewall.tokens import NewToken, Token, Tokens, Uses, digest_of, new_text

MOST_TOKENS = 1000
_EVER = "tokens_ever"
_COLUMNS = "name, public_id, digest, scope, created_at, created_by, expires_at"


class TokenChanges(Commits):
    """Every public method may be called from any thread."""

    def create_token(self, name: str | None, scope: str, expires_at: float | None) -> NewToken:
        """Raises AlreadyExists, or Conflict where there are too many."""
        with self._changing_alone():
            text, public_id = new_text()
            name = name or f"token-{public_id}"
            if self.tokens.named(name):
                raise AlreadyExists(
                    f"there is another token {name!r}",
                    f"revoke it (DELETE /v1/tokens/{name}), or choose another name",
                    (Problem("/name", "is the name of another token"),),
                    code="token_exists",
                )
            if len(self.tokens.all()) >= MOST_TOKENS:
                hint = "revoke some: GET /v1/tokens lists them"
                raise Conflict(f"there are {MOST_TOKENS:,} tokens already", hint, code="too_many_tokens")
            by = self._origin.actor if self._origin else "service"
            token = Token(name, public_id, digest_of(text), scope, self._clock(), by, expires_at)
            with self._store.transaction(), Failures("writing the token"):
                row = tuple(getattr(token, column) for column in _COLUMNS.split(", "))
                self._store.connection.execute(f"INSERT INTO tokens ({_COLUMNS}) VALUES (?,?,?,?,?,?,?)", row)
                self._store.connection.execute("INSERT OR IGNORE INTO meta VALUES (?, 1)", (_EVER,))
                self._audit("token.create", name, None, _fields(token))
            self.tokens = Tokens([*self.tokens.all(), token])
            self.has_had_tokens = True
            return NewToken(token, text)

    def token_of(self, text: str) -> Token:
        """Notes that it was used. Raises NotAuthenticated."""
        now = self._clock()
        token = self.tokens.check(text, now)
        self._uses.note(token, now)
        return token

    def last_used(self, token: Token) -> float | None:
        """To the minute, in seconds since 1970. None: never."""
        return self._uses.last(token)

    def uses_to_save(self) -> bool:
        return bool(self._uses.due())

    def save_uses(self) -> None:
        """Not a change that anybody asked for: the audit does not have it."""
        with self._changing_alone():
            self._save_uses()

    def _save_uses(self) -> None:
        due = self._uses.due()
        if not due:
            return
        with self._store.transaction(), Failures("writing when tokens were used"):
            self._store.connection.executemany(
                "UPDATE tokens SET last_used_at = ? WHERE public_id = ?",
                [(at, each) for each, at in due.items()],
            )
        self._uses.saved(due)

    def is_in_force(self, token: Token) -> bool:
        """Whether a token that was right still is."""
        return self.tokens.is_valid(token.public_id, self._clock())

    def revoke_token(self, name: str) -> None:
        """Raises NotFound."""
        with self._changing_alone():
            token = self.tokens.named(name)
            if token is None:
                hint = "GET /v1/tokens lists them"
                raise NotFound(f"there is no token {name!r}", hint, code="token_not_found")
            with self._store.transaction(), Failures("revoking the token"):
                self._store.connection.execute("DELETE FROM tokens WHERE name = ?", (name,))
                self._audit("token.revoke", name, _fields(token))
            self.tokens = Tokens(each for each in self.tokens.all() if each.name != name)
            self._uses.forget(token)

    @cached_property
    def tokens(self) -> Tokens:
        with Failures("reading the tokens"):
            rows = self._store.connection.execute(f"SELECT {_COLUMNS} FROM tokens").fetchall()
        return Tokens(Token(*row) for row in rows)

    @cached_property
    def _uses(self) -> Uses:
        asked = "SELECT public_id, last_used_at FROM tokens WHERE last_used_at IS NOT NULL"
        with Failures("reading the tokens"):
            return Uses(dict(self._store.connection.execute(asked).fetchall()))

    @cached_property
    def has_had_tokens(self) -> bool:
        """Whether there is a token, or was."""
        with Failures("reading the tokens"):
            row = self._store.connection.execute("SELECT 1 FROM meta WHERE key = ?", (_EVER,)).fetchone()
        return row is not None


def _fields(token: Token) -> dict[str, object]:
    expires_at = None if token.expires_at is None else format_time(token.expires_at)
    return {"name": token.name, "scope": token.scope, "expires_at": expires_at}
