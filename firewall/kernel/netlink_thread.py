"""Questions to rtnetlink, all of them from one thread.

Owns that thread and its socket. pyroute2 makes an event loop for each call from a thread other than the one that made
the socket, which takes longer than the call, and keeps something of what each leaves behind: a service that is asked a
lot grew by a megabyte in two minutes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyroute2 import IPRoute


class NetlinkThread:
    """In the network namespace of the thread that makes it. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netlink")
        self.ip: IPRoute = self._thread.submit(IPRoute, ext_ack=True).result()

    def ask(self, method: str, *arguments: Any, **named: Any) -> list[Any]:
        """The messages that a method of IPRoute answers. Raises NetlinkError."""
        return self._thread.submit(self._ask, method, *arguments, **named).result()

    def _ask(self, method: str, *arguments: Any, **named: Any) -> list[Any]:
        return list(getattr(self.ip, method)(*arguments, **named) or ())

    def close(self) -> None:
        self._thread.submit(self.ip.close).result()
        self._thread.shutdown()
