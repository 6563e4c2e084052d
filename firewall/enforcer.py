"""The life of the rules in force: start, watch, stop.

Owns the order of starting and stopping, and the thread that follows the clock and the interfaces: expiry, and
interfaces that come and go, are changes like any other. Changes and answers are made by the classes it is built from.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from math import inf

import structlog

from firewall.audit_entries import AuditEntries
from firewall.confirmation import Confirmations
from firewall.datapath import Kernel, LeftOver
from firewall.drop_log import DropLog
from firewall.errors import FirewallError
from firewall.following import tell
from firewall.in_force import About, Limits, Manner
from firewall.interfaces import Interfaces
from firewall.judging import Judging
from firewall.layout import HOOKS
from firewall.list_import import ListImport
from firewall.panicking import Panicking
from firewall.resets import Resets
from firewall.rule_changes import RuleChanges
from firewall.set_changes import SetChanges
from firewall.settings import Interface
from firewall.spare_memory import SpareMemory
from firewall.store import InterfaceTotal, Store
from firewall.token_changes import TokenChanges

log = structlog.get_logger()

_EXPIRY_CHUNK = 10_000
_WATCH_S = 0.5
_BREATH_S = 0.005  # for others, between parts of what expires at once
_LOOK_S = 2.0  # between looks at what no message tells of
_MAPS_LOOK_S = 0.5  # the same at a part of the maps
_LET_IN_S = 0.001  # in which one who waits for the lock gets it


class Enforcer(
    RuleChanges,
    SetChanges,
    ListImport,
    Confirmations,
    Resets,
    Judging,
    Panicking,
    TokenChanges,
    AuditEntries,
):
    """The rules in force. Every method may be called from any thread."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        interfaces: Interfaces,
        limits: Limits,
        about: About,
        manner: Manner,
        clock: Callable[[], float],
    ) -> None:
        """`manner`: its options are those that the kernel was made with; `clock`: seconds since 1970."""
        super().__init__(store, kernel, interfaces, limits, about, manner, clock)
        self._drop_log = DropLog(self.reporting)
        self._stopping = threading.Event()
        self._has_more_to_tidy = False
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Loads the programs, makes the maps hold the stored rules, attaches. Raises FirewallError."""
        with self._lock:
            self._take_up_pending()
            now = self._clock()
            while expired := self._store.expired(now, _EXPIRY_CHUNK):
                with self._store.transaction():
                    self._store.write_rules([each.handle for each in expired], [])
                    self._audit_rules("rule.expire", expired, [], [])
            with self._store.transaction():
                if gone := self._set_store.delete_expired(now):
                    self._audit("set.expire", removed=gone)
            slots = self._kernel.start(int(self._store.identity, 16))
            _, come = self._interfaces.gone_and_come()
            protected = {link.name: link.ifindex for link, _ in come}
            self._take_up_panic(protected)
            self._load(slots, protected)
            for link, request in come:
                tell(self._following.hold(self._interfaces.hold, link, request))
            for link, hook in self._kernel.detach_from_others(self._interfaces.protected().values()):
                log.info("detached", interface=link.name, hook=HOOKS[hook], reason="not asked for any more")
            self._save_left_over(self._kernel.release())
            self.reporting.start(self._kernel.report_source())
            self._drop_log.follow()
            self._is_started = True
            self._check_resets()
            self._look_around()
        self._watcher.start()

    def reload(self, about: About, manner: Manner, configured: Sequence[Interface]) -> None:
        super().reload(about, manner, configured)
        self._drop_log.follow()

    def end_what_waits(self) -> None:
        """Before an end after which nobody could do it in time: changes are taken back, and panic is over."""
        for step in (self._roll_back_at_stop, self.panic_off):
            try:
                step()
            except FirewallError as error:
                log.error("what waits goes on until the next start", error=str(error))

    def stop(self, keep: bool = False) -> None:
        """Saves the counters, detaches, unpins; or, to `keep` the filters, leaves all that to the next start."""
        self._stopping.set()
        self._drop_log.close()
        self.reporting.close()
        if self._watcher.is_alive():
            self._kernel.wake()
            self._watcher.join()
        with self._lock, ExitStack() as leaving:  # from the last to the first, each whatever the others say
            leaving.callback(self._store.close)
            leaving.callback(self._journal.flush)
            if self._is_started:
                self._is_started = False
                leaving.callback(self._kernel.stop, keep)
                leaving.callback(self._save_uses)
                if not keep:
                    for held in self._interfaces.all_held():
                        leaving.callback(self._interfaces.release, held)
                    leaving.callback(self._save_hits)
                elif self._owed:
                    leaving.callback(self._save_left_over, LeftOver())
                leaving.callback(self._kernel.settle)

    def _save_hits(self) -> None:
        """Everything that only the maps know, before they go."""
        policy = list(self._ruleset.policy_rules.values())
        hits = self._kernel.policy_hits([each.slot for each in policy])
        by_handle = {each.handle: hit for each, hit in zip(policy, hits, strict=True)}
        by_handle |= self._kernel.all_address_hits()
        self._save_left_over(LeftOver(by_handle, self._kernel.interface_hits()))

    def _save_left_over(self, left: LeftOver) -> None:
        """What only maps know that are about to go, or are gone."""
        if not left.rules and not left.interfaces and not self._owed:
            return
        names = {ifindex: name for name, ifindex in self._interfaces.protected().items()}
        with self._store.transaction():
            self._store.add_hits(self._owed.items())
            self._store.add_hits(left.rules.items())
            for ifindex, totals in left.interfaces.items():
                self._store.add_interface_hits(
                    InterfaceTotal(names.get(ifindex, f"#{ifindex}"), *each) for each in totals
                )
        self._owed = {}

    def _watch(self) -> None:
        next_look = next_maps_look = 0.0
        spare = SpareMemory()
        while not self._stopping.is_set():
            until = min(self._until_next_expiry(), self._until_due())
            happened = self._kernel.wait(self._until_panic_ends(until))
            if self._stopping.is_set():
                return
            is_time = time.monotonic() >= next_look
            steps = [self._mend, self._tidy, self._end_panic_in_time]
            steps += [self._roll_back_overdue, self._expire, self._expire_entries]
            if happened or is_time:
                steps.append(partial(self._following.follow, happened))
                steps.append(partial(self._watched.look_at_hooks, happened))
            looks: list[Callable[[], None]] = []
            if is_time:
                steps += [self._look_at_store, self._trim_audit]
                looks += [self._watched.look_at_some_hooks, self._watched.look_at_pins]
                next_look = time.monotonic() + _LOOK_S
                spare.look()
            # What has fallen is missed by nobody.
            if time.monotonic() >= next_maps_look and not self._has_fallen:
                looks.append(self._watched.look_at_maps)
                next_maps_look = time.monotonic() + _MAPS_LOOK_S
            failed = [step for step in steps if not self._try(step)]
            failed += [look for look in looks if not self._try_look(look)]
            if failed:  # no hot loop while something is wrong
                self._stopping.wait(_WATCH_S)

    def _try_look(self, look: Callable[[], None]) -> bool:
        """Looks take some milliseconds each: before each one a change that waits gets the lock."""
        self._stopping.wait(_LET_IN_S)
        # Where the maps are not as they should be, _mend() sees to that.
        return self._try(lambda: look() if self._adrift is None else None)

    def _tidy(self) -> None:
        self._has_more_to_tidy = self._kernel.tidy()

    def _look_at_store(self) -> None:
        """Only after a failure: a host at rest writes nothing."""
        if self._watched.store_failed:
            self._store.try_writing()
            self._watched.note_store(None)

    def _try(self, step: Callable[[], None]) -> bool:
        try:
            with self._lock:
                step()
        except FirewallError as error:
            self._note(error)
            log.error("watch failed", error=str(error))
            return False
        except Exception as error:
            self.last_error = repr(error)
            log.exception("watch failed")
            return False
        return True

    def _until_next_expiry(self) -> float:
        if self._is_getting_ready or self._has_more_to_tidy:
            return _BREATH_S
        try:
            found = [self._store.next_expiry(), self._set_store.next_expiry()]
        except FirewallError:
            return _WATCH_S
        moments = [moment for moment in found if moment is not None]
        left = min(moments, default=inf) - self._clock()
        return min(_WATCH_S, max(_BREATH_S if len(moments) else 0.0, left))

    def _expire(self) -> None:
        while expired := self._store.expired(self._clock(), _EXPIRY_CHUNK):
            with self._changing_alone():
                self._change(expired, [], action="rule.expire")
            log.info("rules expired", count=len(expired))
