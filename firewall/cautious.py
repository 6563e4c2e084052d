"""Before a change has an effect: whom it would lock out, whether it touches what waits for its confirmation, and the
end of one that is only tried.

Owns these three questions. A change that the service makes of itself (expiry, a rollback) is asked none of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import structlog

from firewall import lockout
from firewall.analysis import Neighbours
from firewall.audited import Audited
from firewall.caution import Caution, Done, Rehearsed
from firewall.datapath import Link
from firewall.errors import Conflict, Lockout
from firewall.layout import HOOKS
from firewall.lockout import Cut, Listener, ManagementTraffic
from firewall.ruleset import RulesetPlan
from firewall.store import InterfaceRequest, Record
from firewall.undo_log import PendingChange, Touched, UndoLog
from firewall.view import Effect, LockoutView, ShadowView

log = structlog.get_logger()

T = TypeVar("T")
_TOLD = 10  # connections in an error's text
_MOST_LOOKED_AT = 1000  # rules of a change that is only tried


class Cautious(Audited):
    """`_caution`: of the change that is under way, None for the service's own. `_touched`: by pending change."""

    _caution: Caution | None = None
    _made_pending: PendingChange | None = None
    _beginning: PendingChange
    _steady: Callable[[], float] = staticmethod(time.monotonic)  # since this boot, only forward

    @cached_property
    def _boot(self) -> str:
        return self._kernel.boot_id()

    @cached_property
    def _waiting(self) -> dict[int, PendingChange]:
        return {}

    @cached_property
    def _undo_log(self) -> UndoLog:
        return UndoLog(self._store)

    @cached_property
    def _touched(self) -> dict[int, Touched]:
        return {}

    @cached_property
    def _management(self) -> ManagementTraffic:
        return ManagementTraffic(self._kernel, self._interfaces, self._steady)

    @property
    def _is_rehearsal(self) -> bool:
        return self._caution is not None and self._caution.dry_run

    @property
    def _is_unconfirmed(self) -> bool:
        return self._caution is not None and self._caution.confirm_within_s is not None

    def listens_on(self, listeners: Iterable[Listener]) -> None:
        """Where the API is reached over TCP."""
        self._management.listeners = tuple(listeners)

    def cautiously(self, caution: Caution, call: Callable[[], T]) -> Done[T]:
        """Calls a method of this object that changes something."""
        with self._lock:
            self._caution, self._made_pending = caution, None
            try:
                value = call()
                if caution.dry_run:  # it is as was asked for already
                    return Done(effect=Effect(unchanged=1))
                return Done(value, pending=self._made_pending)
            except Rehearsed as rehearsed:
                return Done(effect=rehearsed.effect)
            finally:
                self._caution = None

    # -- a change of rules

    def _consider(
        self,
        plan: RulesetPlan,
        removed: Sequence[Record],
        written: Sequence[Record],
        unchanged: int,
        imported: int = 0,
    ) -> None:
        """Raises Conflict, Lockout or Rehearsed."""
        caution = self._caution
        if caution is None:
            return
        self._check_untouched(removed, written)
        cuts = (
            ()
            if caution.allow_lockout and not caution.dry_run
            else self._cuts(plan, removed, written, caution)
        )
        if caution.dry_run:
            raise Rehearsed(self._effect(plan, removed, written, unchanged, imported, cuts))
        if cuts:
            raise self._lockout(cuts, written)

    def _consider_set(
        self,
        name: str,
        plans: Sequence[RulesetPlan],
        added: int = 0,
        removed: int = 0,
        changed: int = 0,
        unchanged: int = 0,
    ) -> None:
        """The same of a set: `plans` is empty where no packet is concerned."""
        caution = self._caution
        if caution is None:
            return
        for change, touched in self._touched.items():
            if name in touched.sets:
                raise self._is_pending(change, f"set {name!r}")
        cuts: list[Cut] = []
        if not (caution.allow_lockout and not caution.dry_run):
            cuts = [cut for plan in plans for cut in self._cuts(plan, (), (), caution)]
        if caution.dry_run:
            raise Rehearsed(Effect(added, removed, changed, unchanged, (), self._lockout_views(cuts, ())))
        if cuts:
            raise self._lockout(cuts, ())

    def _cuts(
        self, plan: RulesetPlan, removed: Sequence[Record], written: Sequence[Record], caution: Caution
    ) -> Sequence[Cut]:
        packets = self._management.packets(caution.client)
        planned = self._ruleset.planned(plan)
        if removed or written:  # or they are imported, or of a set, and any packet may be concerned
            packets = lockout.concerned(packets, removed, written, self._ruleset, planned)
        named = [
            lockout.knocks(listener)
            for listener in self._management.listeners
            if any(lockout.names_listener(each.rule, listener) for each in written)
        ]
        if not packets and not named:
            return ()
        found = lockout.cuts(packets, self._ruleset, planned, self._options)
        ours = {each.handle for each in written}
        found += [
            each for each in lockout.cuts(named, self._ruleset, planned, self._options) if each.handle in ours
        ]
        return found

    def _effect(
        self,
        plan: RulesetPlan,
        removed: Sequence[Record],
        written: Sequence[Record],
        unchanged: int,
        imported: int,
        cuts: Sequence[Cut],
    ) -> Effect:
        old, new = {each.handle for each in removed}, {each.handle for each in written}
        shadows = self._shadowed(plan, written)
        names = self._names([each.handle for each in written] + [by for _, by in shadows], written)
        return Effect(
            added=len(new - old) + imported,
            removed=len(old - new),
            changed=len(old & new),
            unchanged=unchanged,
            shadowed=tuple(ShadowView(names[handle], names.get(by)) for handle, by in shadows),
            lockouts=self._lockout_views(cuts, written),
        )

    def _shadowed(self, plan: RulesetPlan, written: Sequence[Record]) -> list[tuple[int, int]]:
        """Of the first rules of a change those that would never win, each with one that beats it; 0 is never_drop."""
        if not written:
            return []
        neighbours = Neighbours(self._ruleset.after(plan))
        found = (
            (each.handle, neighbours.beaten(each.rule, each.handle)) for each in written[:_MOST_LOOKED_AT]
        )
        return [(handle, by.named) for handle, by in found if by is not None and by.code == "shadowed"]

    # -- what waits for its confirmation

    def _begin_pending(self, added: int, removed: int, changed: int) -> None:
        """Inside the transaction of a change that goes unless confirmed."""
        caution = self._caution
        assert caution is not None and caution.confirm_within_s is not None
        now, wait = self._clock(), caution.confirm_within_s
        change = PendingChange(
            0, caution.what, now, now + wait, self._steady() + wait, self._boot, added, removed, changed
        )
        self._beginning = replace(change, id=self._undo_log.begin(change))

    @property
    def _pending_id(self) -> int:
        """Of the change that _begin_pending() began."""
        return self._beginning.id

    def _await_confirmation(self) -> None:
        """That change is durable and in the kernel."""
        change = self._made_pending = self._beginning
        self._watch_pending(change)
        log.warning("change waits for its confirmation", change=change.id, what=change.what,
                    seconds=round(change.due - self._steady(), 1))  # fmt: skip
        self.on_pending()

    def _watch_pending(self, change: PendingChange) -> None:
        self._waiting[change.id] = change
        self._touched[change.id] = self._undo_log.touched(change.id)
        self._hold_room()
        self._kernel.wake()

    def _forget_pending(self, change: int) -> None:
        self._waiting.pop(change, None)
        self._touched.pop(change, None)
        self._hold_room()

    def _load(self, slots: dict[int, int], protected: dict[str, int]) -> None:
        super()._load(slots, protected)
        self._hold_room()

    def _hold_room(self) -> None:
        """For policy rules that come back with a rollback."""
        self._ruleset.held_rules = sum(max(0, each.removed - each.added) for each in self._waiting.values())

    def _check_untouched(self, removed: Sequence[Record], written: Sequence[Record]) -> None:
        for change, touched in self._touched.items():
            for record in (*removed, *written):
                if touched.rule(record):
                    raise self._is_pending(change, f"rule {record.rule.id!r}")

    def _check_interface_untouched(self, name: str) -> None:
        if self._caution is not None:
            for change, touched in self._touched.items():
                if name in touched.interfaces:
                    raise self._is_pending(change, f"interface {name!r}")

    def _is_pending(self, change: int, what: str) -> Conflict:
        return Conflict(
            f"{what} is part of change {change}, which waits for its confirmation",
            f"confirm it (POST /v1/confirm?id={change}) or take it back (POST /v1/rollback?id={change}) first",
            code="change_pending",
        )

    # -- an interface that is about to be protected

    def _consider_attaching(self, link: Link, request: InterfaceRequest) -> None:
        caution = self._caution
        if caution is None:
            return
        self._check_interface_untouched(link.name)
        held = self._interfaces.held(link.name)
        ingress = request.ingress and not (held and held.request.ingress)
        egress = request.egress and not (held and held.request.egress)
        cuts: Sequence[Cut] = ()
        if (ingress or egress) and not (caution.allow_lockout and not caution.dry_run):
            packets = self._management.packets(caution.client, (link.name, link.ifindex, ingress, egress))
            planned = self._ruleset
            cuts = lockout.cuts(packets, planned, planned, self._options, is_new=True)
        if caution.dry_run:
            raise Rehearsed(Effect(lockouts=self._lockout_views(cuts, ())))
        if cuts:
            raise self._lockout(cuts, ())

    def _consider_detaching(self, name: str) -> None:
        self._check_interface_untouched(name)
        if self._is_rehearsal:
            raise Rehearsed(Effect())

    # -- in words

    def _lockout(self, cuts: Sequence[Cut], written: Sequence[Record]) -> Lockout:
        views = self._lockout_views(cuts, written)
        first = views[0]
        who = "the default action" if first.rule is None else f"rule {first.rule!r}"
        others = {each.connection for each in views} - {first.connection}
        more = f" (and {len(others)} more)" if others else ""
        return Lockout(
            f"{who} would drop {first.connection} at {first.hook} of {first.interface}{more}",
            "if that is meant, repeat it with allow_lockout=true; with confirm_within=60 besides, it is taken back",
            connections=views[:_TOLD],
        )

    def _lockout_views(self, cuts: Sequence[Cut], written: Sequence[Record]) -> tuple[LockoutView, ...]:
        names = self._names([each.handle for each in cuts if each.handle is not None], written)
        return tuple(
            LockoutView(
                None if each.handle is None else names.get(each.handle, f"#{each.handle}"),
                each.managing.connection,
                each.managing.purpose,
                each.managing.packet.interface or "",
                HOOKS[each.managing.packet.hook],
            )
            for each in cuts
        )

    def _names(self, handles: Sequence[int], written: Sequence[Record]) -> dict[int, str]:
        """Ids by handle, of rules that are stored or about to be."""
        names = {each.handle: each.rule.id for each in written}
        stored = self._store.by_handles([each for each in dict.fromkeys(handles) if each not in names])
        return {**{each.handle: each.rule.id for each in stored}, **names}
