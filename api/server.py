"""The life of the service: listen, start the enforcer, serve, stop the enforcer.

Owns the order. The sockets listen first, so /healthz answers while programs are compiled and maps are filled;
systemd hears READY after that. At the end requests under way finish before the enforcer stops.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog
import uvicorn
import uvloop
from fastapi import FastAPI

from api.app import create_app
from api.log import fields_of
from api.notify import notify
from api.running import Running
from api.watchdog import beat
from firewall.enforcer import Enforcer
from firewall.errors import FirewallError

GRACE_S = 5

log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the service's: uvicorn would end the process by them, with their exit status."""
        yield


def run(enforcer: Enforcer, sockets: Sequence[socket.socket]) -> int:
    """Serves until SIGTERM or SIGINT; the process's exit status."""
    app = create_app(enforcer, phase="starting")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_live(app, app.state.running, sockets))


async def _live(app: FastAPI, running: Running, sockets: Sequence[socket.socket]) -> int:
    stop = _stop_signal()
    server = _Server(
        uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=list(sockets)))
    beating = asyncio.create_task(beat(notify))
    status = 1
    try:
        if await _start(running) and await _is_told_to_stop(stop, serving):
            status = 0
    finally:
        is_started = running.phase == "running"
        beating.cancel()
        running.phase = "stopping"
        notify("STOPPING=1", "STATUS=stopping")
        server.should_exit = True
        await asyncio.wait((serving,))
        await asyncio.to_thread(running.close)
        if is_started and not await _stop(running):
            status = 1
    return status


def _stop_signal() -> asyncio.Event:
    """Set by SIGTERM and SIGINT. SIGHUP, which ends a process that does not handle it, changes nothing."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(
        signal.SIGHUP, lambda: log.info("SIGHUP ignored", hint="restart to read the config again")
    )
    return stop


async def _start(running: Running) -> bool:
    notify("STATUS=compiling programs and filling maps")
    began = time.monotonic()
    try:
        await asyncio.to_thread(running.enforcer.start)
    except FirewallError as error:
        log.error("cannot start", **fields_of(error))
        return False
    except Exception:
        log.exception("cannot start")
        return False
    running.phase = "running"
    reasons = await asyncio.to_thread(running.enforcer.not_ready)
    for reason in reasons:
        log.warning("not ready", reason=reason)
    log.info("started", seconds=round(time.monotonic() - began, 3))
    notify("READY=1", f"STATUS=not ready: {'; '.join(reasons)}" if reasons else "STATUS=ready")
    return True


async def _is_told_to_stop(stop: asyncio.Event, serving: asyncio.Task[None]) -> bool:
    """Waits for a signal: True. False if the server ends by itself, which is a failure."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((stopping, serving), return_when=asyncio.FIRST_COMPLETED)
    if stopping.done():
        log.info("stopping")
        return True
    stopping.cancel()
    log.error("the HTTP server ended by itself", exc_info=serving.exception())
    return False


async def _stop(running: Running) -> bool:
    try:
        await asyncio.to_thread(running.enforcer.stop)
    except FirewallError as error:
        log.error("cannot stop cleanly", **fields_of(error))
        return False
    except Exception:
        log.exception("cannot stop cleanly")
        return False
    log.info("stopped")
    return True
