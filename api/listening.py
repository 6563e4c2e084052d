"""Answers that go on: what a listener to reports gets, chunk by chunk, for as long as its client reads.

Owns the way from the thread that reads reports to the event loop, and giving a listener back whatever ends its
answer: also that the token that let it in was revoked, or expired. A client that reads slowly keeps its own listener
waiting and nobody else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.origin import ACTING
from firewall.address import Prefix, parse_prefix
from firewall.enforcer import Enforcer
from firewall.errors import InvalidInput, Problem
from firewall.layout import HOOKS, REASONS
from firewall.listener import Listener, Taken, Wanted

MOST_AT_ONCE = 256
KEEP_ALIVE_S = 15.0
DAY_S = 86400


class PacketFilters(BaseModel):
    """The part of a query that says which packets."""

    model_config = ConfigDict(extra="forbid")

    rule: str | None = Field(None, description="Packets that this rule decided.")
    address: str | None = Field(
        None, description="Address or CIDR of source or destination.", examples=["203.0.113.0/24"]
    )
    interface: str | None = Field(None, description="A name, or a pattern.", examples=["eth*"])
    reason: str | None = Field(None, description=f"One of {', '.join(REASONS)}.")
    hook: str | None = Field(None, description=f"One of {', '.join(HOOKS)}.")

    def wanted(self, firewall: Enforcer, is_all: bool = False, snap_length: int = 0) -> Wanted:
        """Raises FirewallError: a name that nothing has is a mistake, not a filter."""
        if self.rule is not None:
            firewall.rule(self.rule)
        _check_name("reason", self.reason, REASONS)
        _check_name("hook", self.hook, HOOKS)
        return Wanted(self.rule, self._prefix(), self.interface, self.reason, self.hook, is_all, snap_length)

    def _prefix(self) -> Prefix | None:
        try:
            return None if self.address is None else parse_prefix(self.address)
        except ValueError as error:
            raise _wrong("address", str(error)) from None


Filters = Annotated[PacketFilters, Query()]


def _check_name(parameter: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise _wrong(parameter, f"{value!r} is none of {', '.join(known)}")


def _wrong(parameter: str, detail: str) -> InvalidInput:
    problem = Problem(f"?{parameter}", detail)
    return InvalidInput(f"?{parameter}: {detail}", "", (problem,), "invalid_query")


class ListenerStream(StreamingResponse):
    """Streams `chunks` of what a listener gets. It listens already when the client reads the answer's head."""

    def __init__(
        self,
        firewall: Enforcer,
        wanted: Wanted,
        chunks: Callable[[AsyncIterator[Taken]], AsyncIterator[bytes]],
        media_type: str,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> None:
        """`chunks`: makes bytes of what is taken, which after KEEP_ALIVE_S is nothing. `seconds`: then it ends."""
        loop, self._ready = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(self._ready.set)

        self._acting = ACTING.get()
        self._reporting = firewall.reporting
        self._ends_at = None if seconds is None else time.monotonic() + seconds
        self._listener: Listener = self._reporting.listen(wanted, notify)
        kept = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
        super().__init__(chunks(self._taken()), 200, kept, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reporting.leave(self._listener)

    async def _taken(self) -> AsyncIterator[Taken]:
        """Until it is over."""
        while True:
            left = None if self._ends_at is None else self._ends_at - time.monotonic()
            if left is not None and left <= 0:
                return
            if self._acting is not None and not self._acting.may_go_on():
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ready.wait(), min(KEEP_ALIVE_S, left or KEEP_ALIVE_S))
            self._ready.clear()
            taken = self._listener.take(MOST_AT_ONCE)
            yield taken
            if taken.is_over:
                return
