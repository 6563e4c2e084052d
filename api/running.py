"""The firewall as requests may use it: whether it has started, and its only writer.

Owns the writer thread: changes queue there one behind the other, so that the event loop never waits for a
lock, the disk or the kernel. It must not know what a change does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Literal, ParamSpec, TypeVar

from fastapi import Depends, Request

from api.errors import RequestRefused
from firewall.enforcer import Enforcer
from firewall.errors import InvalidInput, Problem

Phase = Literal["starting", "running", "stopping"]
P = ParamSpec("P")
T = TypeVar("T")


class Running:
    """`phase` is changed by whoever starts and stops the enforcer (api.server)."""

    def __init__(self, enforcer: Enforcer, phase: Phase) -> None:
        self.enforcer = enforcer
        self.phase = phase
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")

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
        """Calls it in the writer thread. A client that goes away does not stop a change under way."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, partial(call, *arguments, **keywords))

    def close(self) -> None:
        """Returns when the last change has ended."""
        self._writer.shutdown(wait=True)


async def running_of(request: Request) -> Running:
    running: Running = request.app.state.running
    _ = running.firewall  # refuses here, before the handler reads anything
    return running


InService = Annotated[Running, Depends(running_of)]


async def no_query(request: Request) -> None:
    """An unknown parameter is an error, as an unknown field is."""
    if request.query_params:
        problems = tuple(Problem(f"?{name}", "unknown parameter") for name in request.query_params)
        raise InvalidInput(
            f"{problems[0].pointer}: unknown parameter", "see /docs", problems, "invalid_query"
        )


NO_QUERY = Depends(no_query)
