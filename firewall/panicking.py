"""Panic: everything is blocked but never_drop and the management connections of the moment, for a time.

Owns going in, coming out, and taking it up after a restart. It is stored before it is in force, with its end, so that
it ends whatever happens to the service. Rules go on being changed and stored meanwhile: their address entries are
written and count for nothing, the policy waits (in_force.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from firewall.commit import Commits
from firewall.datapath import Change
from firewall.policy import Policy
from firewall.reads import Reads
from firewall.shield import Panic, management, panic_policy
from firewall.view import PanicView

log = structlog.get_logger()


@dataclass(frozen=True)
class _Switched:
    """What packets meet of panic and policy."""

    panic: Panic | None
    policy: Policy
    options: tuple[int, int]


class Panicking(Commits, Reads):
    """Every method may be called from any thread."""

    def panic_on(self, ttl_s: int) -> PanicView:
        """Where it is on already, its time starts anew and the connections of now are kept."""
        with self._changing_alone():
            kept = management(self._kernel.connections(), self._shield.listening)
            panic = Panic(self._clock(), ttl_s, kept)
            self._switch(self._in(panic), "panic.on", seconds=ttl_s, connections=len(kept))
            log.warning("panic is on", seconds=ttl_s, connections=len(kept))
        self.on_pending()
        return self.panic()

    def panic_off(self) -> PanicView:
        with self._changing_alone():
            if self._panic is not None:
                self._switch(self._out(), "panic.off")
                log.warning("panic is off")
            return self.panic()

    def _end_panic_in_time(self) -> None:
        if self._panic is not None and self._panic.left_s(self._clock()) <= 0:
            with self._changing_alone():
                self._switch(self._out(), "panic.off", why="its time has come")
            log.warning("panic is over: its time has come")

    def _until_panic_ends(self, most: float) -> float:
        return most if self._panic is None else min(most, max(0.0, self._panic.left_s(self._clock())))

    def _take_up_panic(self, protected: dict[str, int]) -> None:
        """At the start, before the rules are loaded."""
        stored = self._store.panic()
        panic = None if stored is None else Panic.decoded(stored)
        if panic is not None and panic.left_s(self._clock()) <= 0:
            with self._store.transaction():
                self._store.write_panic(None)
                self._audit("panic.off", why="its time came while the service was not there")
            log.warning("panic is over: its time came while the service was not there")
            panic = None
        if panic is not None:
            self._panic, self._panic_policy = panic, self._compiled(panic, protected)
            self._options = self._shield.panic_options
            log.warning("panic is still on", seconds=round(panic.left_s(self._clock())))
        self._kernel.set_options(self._options)

    def _compiled(self, panic: Panic, protected: dict[str, int]) -> Policy:
        return panic_policy(panic, self._shield.listening, protected, self._limits.rules)

    def _in(self, panic: Panic) -> _Switched:
        policy = self._compiled(panic, self._interfaces.protected())
        return _Switched(panic, policy, self._shield.panic_options)

    def _out(self) -> _Switched:
        return _Switched(None, self._ruleset.policy, self._manner.options)

    def _switch(self, to: _Switched, action: str, /, **told: object) -> None:
        """Store and kernel, both or neither. `action`, `told`: for the audit."""
        occupancy = self._ruleset.addresses.occupancy
        before = _Switched(self._panic, self._policy_in_force(self._ruleset), self._options)
        is_new = before.panic is None
        counted = list(self._ruleset.policy_rules.values()) if is_new else []
        slots = [each.slot for each in counted]
        self._reserve(self._ruleset.addresses.sizes(), to.policy)
        is_applied = False
        try:
            with self._store.transaction():
                self._store.write_panic(None if to.panic is None else to.panic.encoded())
                self._audit(action, "", None, None, **told)
                self._kernel.set_options(to.options)
                self._kernel.apply(Change((), occupancy, occupancy, before.policy, to.policy))
                is_applied = True
                self._kernel.settle()
                # A start finds no slots in panic's policy and begins them at 0.
                hits = self._kernel.policy_hits(slots)
                self._store.add_hits(zip((each.handle for each in counted), hits, strict=True))
        except BaseException as error:
            self._note(error)
            self._kernel.set_options(before.options)
            if is_applied:
                self._put_back(Change((), occupancy, occupancy, to.policy, before.policy))
            raise
        self._panic, self._panic_policy, self._options = to.panic, to.policy, to.options
        if slots:
            self._kernel.apply(Change((), occupancy, occupancy, fresh_slots=slots))

    def _put_back(self, change: Change) -> None:
        try:
            self._kernel.apply(change)
        except Exception as refusal:
            self._drift(refusal)
