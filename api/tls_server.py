"""Accepting connections that begin with TLS: who says nothing costs little, and there is an end to their number.

Owns the connections whose handshake is under way. Each costs some 60 KB from its first moment, before anybody has shown
who it is, and no connection is counted until then. Where there are as many as may be, the one that waits longest goes:
whoever means it takes some milliseconds.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

from api.complaints import Complaints

_AT_ONCE = 64  # connections accepted before others have their turn
_PAUSE_S = 0.1  # where there are no descriptors


class TlsServer:
    """What uvicorn knows as a server. Accepts until it is closed."""

    def __init__(
        self,
        listener: socket.socket,
        tls: ssl.SSLContext,
        connection: Callable[[], asyncio.Protocol],
        most: int,
        timeout_s: float,
        complaints: Complaints,
    ) -> None:
        """The `listener` listens. `most`, `timeout_s`: of handshakes that are under way. A `connection` is told of its
        transport after one."""
        self._listener = listener
        self._tls = tls
        self._connection = connection
        self._most = most
        self._timeout_s = timeout_s
        self._complaints = complaints
        self._under_way: dict[socket.socket, asyncio.Task[None]] = {}  # the oldest first
        listener.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._is_open = True
        self._look_for_clients()

    def close(self) -> None:
        self._is_open = False
        self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""

    def _look_for_clients(self) -> None:
        if self._is_open:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                opened, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._complaints.say("cannot accept a connection", error=error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_PAUSE_S, self._look_for_clients)
                return
            opened.setblocking(False)
            if len(self._under_way) >= self._most:
                self._end_the_oldest()
            self._under_way[opened] = self._loop.create_task(self._agree(opened))

    def _end_the_oldest(self) -> None:
        oldest = next(iter(self._under_way))
        del self._under_way[oldest]  # the loop holds its task until it sees the end
        self._complaints.say("too many TLS handshakes under way")
        with suppress(OSError):
            oldest.shutdown(socket.SHUT_RDWR)

    async def _agree(self, opened: socket.socket) -> None:
        try:
            with suppress(OSError):  # a timeout, and all that can be wrong with TLS, are such
                await self._loop.connect_accepted_socket(
                    self._connection, opened, ssl=self._tls, ssl_handshake_timeout=self._timeout_s
                )
        finally:
            self._under_way.pop(opened, None)
