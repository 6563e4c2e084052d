"""Interfaces over time: they come, go, are renamed and made again, and those that refused us are asked again.

Owns when that is done and what it means for counters. Choosing what is attached, and how, is interfaces.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog

from firewall.datapath import Happened, Kernel, Link
from firewall.errors import StoreFailed
from firewall.interfaces import Held, Interfaces
from firewall.layout import HOOKS
from firewall.settings import Interface
from firewall.store import InterfaceRequest, InterfaceTotal, Store

log = structlog.get_logger()

_RETRY_FIRST_S, _RETRY_LATEST_S = 2.0, 60.0
# Also where the host tells of the interface all the time.
_RETRY_SOONEST_S = 0.5


class Following:
    """Used under the enforcer's lock."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        interfaces: Interfaces,
        protect: Callable[[dict[str, int]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`protect`: makes the rules mean these interfaces; `clock`: seconds that only go forward."""
        self._store = store
        self._kernel = kernel
        self._interfaces = interfaces
        self._protect = protect
        self._clock = clock
        self._is_unprotected = False  # the rules do not mean all interfaces yet: to be done again

    def follow(self, happened: Happened) -> None:
        """Lets go of interfaces that went away, attaches those that came, asks again where we were refused."""
        gone, come = self._interfaces.gone_and_come()
        for held in gone:
            log.warning("interface gone", interface=held.link.name)
            self._save_if_possible(held)
            self._interfaces.leave(held)
            self._kernel.uncount_interface(held.link.ifindex)
        for link, request in come:
            tell(self.hold(self._interfaces.hold, link, request))
        if gone or come or self._is_unprotected:
            # After attaching: what the rules for all interfaces say holds at once.
            self._is_unprotected = True
            self._protect(self._interfaces.protected())
            self._is_unprotected = False
        for held in self._interfaces.all_held():
            if held.errors and self._is_due(held, happened):
                self._ask_again(held)

    def reconfigure(self, configured: Sequence[Interface]) -> None:
        """With another list in the config."""
        changed, unwanted = self._interfaces.reconfigure(configured)
        for held in unwanted:
            self._save_if_possible(held)
            self._interfaces.release(held)
            self._kernel.uncount_interface(held.link.ifindex)
            log.info("detached", interface=held.link.name, reason="not asked for any more")
        for held in changed:
            tell(self.hold(self._interfaces.hold, held.link, held.request))
        self._is_unprotected = True
        self.follow(Happened(everything=True))

    def hold(
        self, hold: Callable[[Link, InterfaceRequest], Held], link: Link, request: InterfaceRequest
    ) -> Held:
        self._kernel.count_interface(link.ifindex)
        held = hold(link, request)
        held.asked_at = self._clock()
        held.ask_again_at = held.asked_at + _RETRY_FIRST_S
        return held

    def _save_if_possible(self, held: Held) -> None:
        """A full disk must not keep an interface without its filter."""
        try:
            with self._store.transaction():
                self.write_hits(held)
        except StoreFailed as error:
            log.error("counters of an interface are lost", interface=held.link.name, error=str(error))

    def write_hits(self, held: Held) -> None:
        """Inside a transaction."""
        totals = self._kernel.interface_hits().get(held.link.ifindex, [])
        self._store.add_interface_hits(InterfaceTotal(held.link.name, *each) for each in totals)

    def _is_due(self, held: Held, happened: Happened) -> bool:
        now = self._clock()
        is_told = happened.concerns(held.link.ifindex)
        return now >= held.ask_again_at or (is_told and now >= held.asked_at + _RETRY_SOONEST_S)

    def _ask_again(self, held: Held) -> None:
        """Waits twice as long each time."""
        waited_s = held.ask_again_at - held.asked_at
        again = self.hold(self._interfaces.hold, held.link, held.request)
        if again.errors:
            again.ask_again_at = again.asked_at + min(2 * waited_s, _RETRY_LATEST_S)
        if again.errors != held.errors:
            tell(again)


def tell(held: Held) -> None:
    name = held.link.name
    for hook, error in held.errors.items():
        log.error("not attached", interface=name, hook=HOOKS[hook], error=error)
    if not held.errors:
        log.info("interface attached", interface=name)
    if held.native_unavailable:
        log.warning("generic mode, slower", interface=name, reason=held.native_unavailable)
