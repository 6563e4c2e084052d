"""The life of the rules in force: start, watch, stop.

Owns the order of starting and stopping, and the thread that follows the clock and the interfaces: expiry, and
interfaces that come and go, are changes like any other. Changes and answers are made by the classes it is built from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

import structlog

from firewall.datapath import Kernel
from firewall.errors import FirewallError
from firewall.in_force import About, Limits
from firewall.interface_changes import InterfaceChanges
from firewall.interfaces import Interfaces
from firewall.list_import import ListImport
from firewall.rule_changes import RuleChanges
from firewall.store import InterfaceTotal, Store

log = structlog.get_logger()

_EXPIRY_CHUNK = 10_000
_WATCH_S = 0.5


class Enforcer(RuleChanges, ListImport, InterfaceChanges):
    """The rules in force. Every method may be called from any thread."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        interfaces: Interfaces,
        limits: Limits,
        about: About,
        clock: Callable[[], float],
    ) -> None:
        """`clock`: seconds since 1970."""
        super().__init__(store, kernel, interfaces, limits, about, clock)
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Loads the programs, makes the maps hold the stored rules, attaches. Raises FirewallError."""
        with self._lock:
            now = self._clock()
            while expired := self._store.expired(now, _EXPIRY_CHUNK):
                with self._store.transaction():
                    self._store.write_rules([each.handle for each in expired], [])
            slots = self._kernel.start(int(self._store.identity, 16))
            _, come = self._interfaces.gone_and_come()
            self._load(slots, {link.name: link.ifindex for link, _ in come})
            for link, request in come:
                self._hold(self._interfaces.hold, link, request)
            self._kernel.release()
            self._is_started = True
            self._look_around()
        self._watcher.start()

    def stop(self) -> None:
        """Saves the counters, detaches, unpins."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        with self._lock, ExitStack() as leaving:  # from the last to the first, each whatever the others say
            leaving.callback(self._store.close)
            if self._is_started:
                self._is_started = False
                leaving.callback(self._kernel.stop)
                for held in self._interfaces.all_held():
                    leaving.callback(self._interfaces.release, held)
                leaving.callback(self._save_hits)
                leaving.callback(self._kernel.settle)

    def _save_hits(self) -> None:
        """Everything that only the maps know, before they go."""
        names = {ifindex: name for name, ifindex in self._interfaces.protected().items()}
        policy = list(self._ruleset.policy_rules.values())
        hits = self._kernel.policy_hits([each.slot for each in policy])
        by_handle = {each.handle: hit for each, hit in zip(policy, hits, strict=True)}
        with self._store.transaction():
            self._store.add_hits(self._owed.items())
            self._store.add_hits((by_handle | self._kernel.all_address_hits()).items())
            for ifindex, totals in self._kernel.interface_hits().items():
                self._store.add_interface_hits(
                    InterfaceTotal(names.get(ifindex, f"#{ifindex}"), *each) for each in totals
                )

    def _watch(self) -> None:
        wait_s = self._until_next_expiry()
        while not self._stopping.wait(wait_s):
            steps = (self._mend, self._kernel.settle, self._expire, self._follow_interfaces)
            failed = [step for step in steps if not self._try(step)]
            # No hot loop while something is wrong.
            wait_s = _WATCH_S if failed else self._until_next_expiry()

    def _try(self, step: Callable[[], None]) -> bool:
        try:
            with self._lock:
                step()
        except FirewallError as error:
            self.last_error = str(error)
            log.error("watch failed", error=str(error))
            return False
        except Exception as error:
            self.last_error = repr(error)
            log.exception("watch failed")
            return False
        return True

    def _until_next_expiry(self) -> float:
        try:
            moment = self._store.next_expiry()
        except FirewallError:
            return _WATCH_S
        return _WATCH_S if moment is None else min(_WATCH_S, max(0.0, moment - self._clock()))

    def _expire(self) -> None:
        while expired := self._store.expired(self._clock(), _EXPIRY_CHUNK):
            with self._changing_alone():
                self._change(expired, [])
            log.info("rules expired", count=len(expired))
