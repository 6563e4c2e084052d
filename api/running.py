"""The firewall as requests may use it: whether it has started, and its only writer.

Owns the writer thread, so that the event loop never waits for a lock, the disk or the kernel. Changes queue there;
those that came while it was busy are made together. It must not know what a change does.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar

import structlog
from fastapi import Depends, Request

from api.errors import RequestRefused
from api.measured import Requests
from api.origin import ACTING
from feeds.crowdsec import Bouncer
from feeds.subscriptions import Subscriptions
from firewall.caution import Caution, Done
from firewall.commit import Outcome
from firewall.enforcer import Enforcer
from firewall.errors import InvalidInput, Problem
from firewall.timings import Timings

Phase = Literal["starting", "running", "stopping"]
P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)


# What kind of change a method of the enforcer makes, for the metrics.
KINDS = {
    "add": "add",
    "replace": "replace",
    "edit": "patch",
    "promote": "patch",
    "delete": "delete",
    "batch": "batch",
    "replace_all": "ruleset",
    "import_list": "import",
    "attach": "interface",
    "detach": "interface",
    "reset_counters": "reset_counters",
    "put_set": "set",
    "delete_set": "set",
    "add_entries": "set",
    "delete_entries": "set",
    "replace_entries": "set",
    "reload": "reload",
    "create_token": "token",
    "revoke_token": "token",
}
OTHER = "other"
LINGER_S = 0.002  # for the next changes of those who were just answered


def _kind_of(call: Callable[..., object]) -> str:
    """By the method of the enforcer that it calls."""
    return KINDS.get(getattr(getattr(call, "func", call), "__name__", ""), OTHER)


class _Asked(NamedTuple):
    """A change that a request waits for."""

    call: Callable[[], object]
    answer: asyncio.Future[Any]


class Running:
    """`phase` is changed by whoever starts and stops the enforcer (api.server)."""

    def __init__(self, enforcer: Enforcer, phase: Phase) -> None:
        self.enforcer = enforcer
        self.phase = phase
        self.feeds: Subscriptions | None = None  # once the enforcer has started
        self.crowdsec: Bouncer | None = None  # where the config has one
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._arrived = threading.Condition()
        self._asked: list[_Asked] = []
        self._expected = 0
        self._is_writing = False
        self.requests = Requests()
        self.changes = {kind: Timings() for kind in sorted({*KINDS.values(), OTHER})}
        self.refused = Counter(dict.fromkeys(self.changes, 0))

    @property
    def firewall(self) -> Enforcer:
        """Raises RequestRefused while it cannot answer."""
        if self.phase == "starting":
            raise RequestRefused(
                503, "starting", "the service is starting", "ask /readyz when it has started"
            )
        if self.phase == "stopping":
            raise RequestRefused(503, "stopping", "the service is stopping")
        return self.enforcer

    async def change(self, call: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        """Calls it in the writer thread, together with the others that wait there. A client that goes away does not
        stop a change under way."""
        return await self._timed(_kind_of(call), partial(call, *arguments, **keywords))

    async def cautious_change(self, asking: Caution, call: Callable[[], T]) -> Done[T]:
        """The same, with what a request asks besides the change itself."""
        return await self._timed(_kind_of(call), partial(self.firewall.cautiously, asking, call))

    async def _timed(self, kind: str, call: Callable[[], T]) -> T:
        acting = ACTING.get()
        if acting is not None:
            call = partial(self.enforcer.on_behalf_of, acting.origin, call)
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self.changes[kind].timing():
            with self._arrived:
                self._asked.append(_Asked(call, answer))
                if not self._is_writing:
                    self._is_writing = True
                    self._writer.submit(self._write)
                elif len(self._asked) == self._expected:
                    self._arrived.notify()
            try:
                return await answer
            except Exception:
                self.refused[kind] += 1
                raise

    def _write(self) -> None:
        """In the writer thread, until nobody waits."""
        answered = 0
        while asked := self._take(answered):
            answered = len(asked)
            try:
                outcomes = self.enforcer.together([each.call for each in asked])
            except BaseException as error:
                outcomes = [Outcome(error=RuntimeError(f"the change ended: {error!r}"))] * len(asked)
                log.exception("changes failed")
            for loop in {each.answer.get_loop() for each in asked}:
                mine = [
                    (each.answer, outcome)
                    for each, outcome in zip(asked, outcomes, strict=True)
                    if each.answer.get_loop() is loop
                ]
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(_answer, mine)

    def _take(self, answered: int) -> list[_Asked]:
        """All that wait. Clients that were answered together mostly ask again together: waiting for the last of them
        makes one group of what would be two, and the event loop is at rest while it is written."""
        with self._arrived:
            if answered > 1:
                self._expected = answered + len(self._asked)
                self._arrived.wait_for(lambda: len(self._asked) >= self._expected, LINGER_S)
                self._expected = 0
            asked, self._asked = self._asked, []
            self._is_writing = bool(asked)
        return asked

    def close(self) -> None:
        """Returns when the last change has ended."""
        self._writer.shutdown(wait=True)


async def running_of(request: Request) -> Running:
    running: Running = request.app.state.running
    _ = running.firewall  # refuses here, before the handler reads anything
    return running


def _answer(outcomes: list[tuple[asyncio.Future[Any], Outcome]]) -> None:
    for answer, outcome in outcomes:
        if answer.done():  # its client went away
            continue
        if outcome.error is None:
            answer.set_result(outcome.value)
        else:
            answer.set_exception(outcome.error)


InService = Annotated[Running, Depends(running_of)]


async def no_query(request: Request) -> None:
    """An unknown parameter is an error, as an unknown field is."""
    if request.query_params:
        problems = tuple(Problem(f"?{name}", "unknown parameter") for name in request.query_params)
        raise InvalidInput(
            f"{problems[0].pointer}: unknown parameter", "see /docs", problems, "invalid_query"
        )


NO_QUERY = Depends(no_query)
