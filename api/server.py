"""The life of the service: listen, start the enforcer, serve, read the config again, stop the enforcer.

Owns the order, and what is done now and then beside requests. The sockets listen first, so /healthz answers while
programs are compiled and maps are filled; systemd hears READY after that. At the end requests under way finish before
the enforcer stops.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
import uvicorn
import uvloop
from fastapi import FastAPI

from api import outside
from api.access import Access, warnings_of
from api.app import create_app
from api.connection import Connection, Connections, Patience
from api.guardian import Guardians
from api.listeners import tcp_addresses
from api.log import fields_of
from api.reload import Configuration
from api.running import Running
from api.slow_start import SlowStart
from api.systemd import ending, filters_stay, leaves_nobody, notify, reloading
from api.tls import LOOK_S, ServerTls
from api.tls_server import TlsServer
from api.watchdog import beat
from api.wiring import DATABASE
from firewall.enforcer import Enforcer
from firewall.errors import FirewallError
from firewall.settings import Api
from firewall.tokens import USED_WITHIN_S

GRACE_S = 5
_SLOW_S = 1.0  # between looks at connections that take long
_DENIED_S = 5.0  # between entries of accesses that were denied
_GUARDED_S = 2.0  # between looks whether a guardian is there
_early: set[int] = set()


def remember_signals() -> None:
    """Until the loop hears them: a stop just after the process began must not leave the last one's filters. (Blocking
    them would not do: threads of libraries take them.)"""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda came, _: _early.add(came))


log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, settings: Api, tls: ServerTls | None) -> None:
        super().__init__(config)
        self._patience = Patience.of(settings)
        self._connections = Connections(settings.max_connections)
        self._tls = tls

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the service's: uvicorn would end the process by them, with their exit status."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's for sockets that listen already, but that a Unix socket has no TLS."""
        await self.lifespan.startup()
        self.servers = [await self._server(each) for each in sockets or ()]
        self.started = True

    async def _server(self, listener: socket.socket) -> Any:
        if self._tls is None or listener.family == socket.AF_UNIX:
            loop = asyncio.get_running_loop()
            return await loop.create_server(self._connection, sock=listener, backlog=self.config.backlog)
        listener.listen(self.config.backlog)
        return TlsServer(
            listener,
            self._tls,
            self._connection,
            self._connections.most,
            self._patience.header_s,
            self._connections.complaints,
        )

    def _connection(self) -> Connection:
        return Connection(
            self._patience,
            self._connections,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )

    async def look_at_connections(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(_SLOW_S)
            for each in list(self.server_state.connections):
                if isinstance(each, Connection):
                    each.look()
            self._connections.complaints.flush()


def run(
    enforcer: Enforcer, configuration: Configuration, sockets: Sequence[socket.socket], start: SlowStart
) -> int:
    """Serves until SIGTERM or SIGINT; the process's exit status. Raises InvalidInput where TLS cannot be."""
    settings = configuration.settings.api
    tls = ServerTls(settings) if settings.has_tls else None
    enforcer.listens_on(tcp_addresses(sockets))
    app = create_app(enforcer, phase="starting", settings=settings, tls=tls)
    for warning in warnings_of(settings):
        log.warning(warning)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_live(app, app.state.running, configuration, sockets, tls, start))


async def _live(
    app: FastAPI,
    running: Running,
    configuration: Configuration,
    sockets: Sequence[socket.socket],
    tls: ServerTls | None,
    start: SlowStart,
) -> int:
    stop, reload = _signals()
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
        ),
        configuration.settings.api,
        tls,
    )
    serving = asyncio.create_task(server.serve(sockets=list(sockets)))
    beside = [
        asyncio.create_task(each)
        for each in (
            beat(notify),
            _guard(running, configuration),
            server.look_at_connections(),
            _enter_denied(running, app.state.access),
            _save_uses_of_tokens(running),
            *(() if tls is None else (_look_at_certificates(tls),)),
        )
    ]
    status = 1
    reloader: asyncio.Task[None] | None = None
    try:
        if await _start(running, start):
            await _begin_outside(running, configuration)
            reloader = asyncio.create_task(_reload_when_told(reload, running, configuration, tls))
            if await _is_told_to_stop(stop, serving):
                status = 0
    finally:
        if reloader is not None:
            reloader.cancel()
        await outside.end(running)
        is_started = running.phase == "running"
        for each in beside:
            each.cancel()
        running.phase = "stopping"
        notify("STOPPING=1", "STATUS=stopping")
        running.enforcer.reporting.end_all()  # answers that go on would hold up the end
        server.should_exit = True
        await asyncio.wait((serving,))
        await asyncio.to_thread(running.close)
        if is_started and not await _stop(running, configuration):
            status = 1
    return status


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Set by SIGTERM and SIGINT: stop. By SIGHUP: read the config again, once the service has started."""
    loop, stop, reload = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    if _early & {signal.SIGTERM, signal.SIGINT}:
        stop.set()
    if signal.SIGHUP in _early:
        reload.set()
    return stop, reload


async def _guard(running: Running, configuration: Configuration) -> None:
    """Somebody beside us waits whenever a change does, or panic is on, should we be gone when that runs out."""
    database = configuration.settings.state.directory / DATABASE
    guardians = Guardians(database, configuration.path)
    running.enforcer.on_pending = guardians.ensure
    while True:
        if running.phase == "running" and (running.enforcer.waiting() or running.enforcer.panic().on):
            await asyncio.to_thread(guardians.ensure)
        await asyncio.sleep(_GUARDED_S)


async def _look_at_certificates(tls: ServerTls) -> None:
    """Takes newer ones by itself."""
    while True:
        tls.warn(time.time())
        await asyncio.sleep(LOOK_S)
        await asyncio.to_thread(tls.reload)


async def _enter_denied(running: Running, access: Access) -> None:
    """Accesses that were denied come into the audit, some at a time: whoever is denied must not make us write."""
    while True:
        await asyncio.sleep(_DENIED_S)
        if running.phase == "running" and (denied := access.attempts.drain()):
            try:
                await running.change(running.enforcer.enter_denied, denied)
            except FirewallError as error:
                log.error("denied accesses were not entered", count=len(denied), **fields_of(error))


async def _save_uses_of_tokens(running: Running) -> None:
    while True:
        await asyncio.sleep(USED_WITHIN_S)
        if running.phase == "running" and running.enforcer.uses_to_save():
            try:
                await running.change(running.enforcer.save_uses)
            except FirewallError as error:
                log.error("when tokens were used was not written", **fields_of(error))


async def _reload_when_told(
    told: asyncio.Event, running: Running, configuration: Configuration, tls: ServerTls | None
) -> None:
    while await told.wait():
        told.clear()
        reloading()
        if tls is not None:
            await asyncio.to_thread(tls.reload, True)
        if await running.change(configuration.reload, running.enforcer):
            await outside.follow_config(running, configuration.settings)
        await _tell_readiness(running)


async def _start(running: Running, start: SlowStart) -> bool:
    notify("STATUS=compiling programs and filling maps")
    began = time.monotonic()
    try:
        await asyncio.to_thread(start.of, running.enforcer.start)
    except FirewallError as error:
        log.error("cannot start", **fields_of(error))
        return False
    except Exception:
        log.exception("cannot start")
        return False
    finally:
        start.end()
    _forget_what_lasts()
    running.phase = "running"
    for reason in await _tell_readiness(running):
        log.warning("not ready", reason=reason)
    log.info("started", seconds=round(time.monotonic() - began, 3))
    return True


def _forget_what_lasts() -> None:
    """What a start made lives as long as the process. A full collection that looked at it would hold everyone for some
    50 ms."""
    gc.collect()
    gc.freeze()


async def _begin_outside(running: Running, configuration: Configuration) -> None:
    """What is not ours must not end the service."""
    try:
        await outside.begin(running, configuration.settings)
    except Exception:
        log.exception("feeds cannot start")


async def _tell_readiness(running: Running) -> list[str]:
    reasons = await asyncio.to_thread(running.enforcer.not_ready)
    notify("READY=1", f"STATUS=not ready: {'; '.join(reasons)}" if reasons else "STATUS=ready")
    return reasons


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


async def _stop(running: Running, configuration: Configuration) -> bool:
    try:
        why = await asyncio.to_thread(ending)
        keep = filters_stay(why, configuration.settings.service.on_stop)
        if keep and leaves_nobody(why):
            await asyncio.to_thread(running.enforcer.end_what_waits)
        await asyncio.to_thread(running.enforcer.stop, keep)
    except FirewallError as error:
        log.error("cannot stop cleanly", **fields_of(error))
        return False
    except Exception:
        log.exception("cannot stop cleanly")
        return False
    log.info("stopped", filters="stay" if keep else "detached")
    return True
