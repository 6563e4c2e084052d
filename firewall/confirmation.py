"""Changes that go unless they are confirmed: what waits, confirming, taking back, and the time that runs out.

Owns the way back of a change: one ordinary change itself, durable and in the kernel, or neither. What it takes is
firewall.undo_log's; who does it where the service is not there any more is the guardian (docs/adr/0011).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

import structlog

from firewall.address_list import PrefixColumns
from firewall.commit import Handles
from firewall.datapath import Entries
from firewall.errors import NotFound, NotPermitted
from firewall.following import tell
from firewall.in_force import block_entries
from firewall.interface_changes import InterfaceChanges
from firewall.set_keys import NO_KEYS, between
from firewall.store import BlockRules, InterfaceRequest
from firewall.undo_log import PendingChange, Undo
from firewall.view import ChangeView, StatusView

log = structlog.get_logger()

_TOO_LATE = "it was not confirmed in time"
_ASKED = "it was asked for"
May = Callable[[str], bool]
_STOPPED = "the service was stopped before it was confirmed"


class Confirmations(InterfaceChanges):
    """Every public method may be called from any thread."""

    def changes(self) -> list[ChangeView]:
        """Those that wait, then the last that ended, the newest first."""
        known = sorted(self._undo_log.changes(), key=lambda each: (each.state != "pending", -each.id))
        return [self._change_view(each) for each in known]

    def waiting(self) -> int:
        """How many changes wait for their confirmation."""
        return len(self._waiting)

    def status(self) -> StatusView:
        return replace(super().status(), changes_waiting=self.waiting())

    def confirm(self, change: int | None = None, may: May | None = None) -> list[ChangeView]:
        """All that wait, or one. `may`: whether who asks could have made a change, by its `what`. Raises NotFound where
        there is none, NotPermitted where one is not theirs."""
        with self._changing_alone():
            chosen = self._chosen(change, may)
            with self._store.transaction():
                for each in chosen:
                    self._undo_log.end(each.id, "confirmed", "", self._clock())
                    self._audit("change.confirm", str(each.id), what=each.what)
            for each in chosen:
                self._forget_pending(each.id)
                log.info("change confirmed", change=each.id, what=each.what)
            return self._views_of(chosen)

    def roll_back(self, change: int | None = None, may: May | None = None) -> list[ChangeView]:
        """The same, the newest first; each is a change of its own."""
        with self._changing_alone():
            chosen = self._chosen(change, may)
            for each in reversed(chosen):
                self._roll_back(each, _ASKED)
            return self._views_of(chosen)

    def _roll_back_at_stop(self) -> None:
        with self._changing_alone():
            for each in reversed(list(self._waiting.values())):
                self._roll_back(each, _STOPPED)

    def _chosen(self, change: int | None, may: May | None) -> list[PendingChange]:
        chosen = [each for each in self._waiting.values() if change in (None, each.id)]
        if not chosen:
            raise NotFound(
                "no change waits for its confirmation"
                if change is None
                else f"change {change} does not wait",
                "GET /v1/changes tells what became of it",
                code="change_not_found",
            )
        for each in chosen:
            if may is not None and not may(each.what):
                hint = "ask whoever may make such a change; one of several is chosen by ?id="
                raise NotPermitted(
                    f"change {each.id} ({each.what}) is none that this client could make", hint
                )
        return chosen

    def _views_of(self, chosen: Sequence[PendingChange]) -> list[ChangeView]:
        ids = {each.id for each in chosen}
        return [each for each in self.changes() if each.id in ids]

    def _change_view(self, each: PendingChange) -> ChangeView:
        left = max(0.0, each.due - self._steady()) if each.state == "pending" else None
        return ChangeView(
            each.id, each.what, each.state, each.reason, each.made_at, each.deadline,
            None if left is None else round(left, 1), each.ended_at, each.added, each.removed, each.changed,
        )  # fmt: skip

    # -- the way back

    def _roll_back(self, change: PendingChange, reason: str) -> None:
        now = self._clock()
        self._take_out_first(None)
        undo = self._undo_log.undo(change.id, now)
        if undo.sets:
            self._spare_all()  # entries get back the times that they had
        sets = self._ruleset.sets
        held, self._ruleset.held_rules = self._ruleset.held_rules, 0
        try:
            plan = self._ruleset.plan(
                undo.present,
                undo.before,
                self._interfaces.protected(),
                _entries(undo.arriving),
                _entries(undo.leaving),
                {name: between(sets.get(name, NO_KEYS), keys) for name, keys in undo.sets.items()},
            )
        finally:
            self._ruleset.held_rules = held
        kept = {each.handle for each in undo.present} - undo.added
        imported = [
            range(each.block.first_handle, each.block.first_handle + each.block.count)
            for each in undo.leaving
        ]

        def write() -> None:
            self._undo_log.take_back(change.id, reason, now)
            self._audit_rollback(change, reason)

        self._perform(
            plan,
            write,
            Handles(undo.added, imported),
            self._leaving_policy(plan, kept),
            has_room=True,
        )
        self._forget_pending(change.id)
        for name in undo.sets:
            if self._set_store.by_name(name) is None:
                self._ruleset.forget_set(name)
        self._put_back_interfaces(undo)
        log.warning("change rolled back", change=change.id, what=change.what, reason=reason)

    def _put_back_interfaces(self, undo: Undo) -> None:
        """As they were asked for. What refuses now is tried again and told, as at a start."""
        for name, request in undo.interfaces.items():
            self._interfaces.remember(name, request)
            wanted, held = self._interfaces.wanted(name), self._interfaces.held(name)
            if wanted is None and held is not None:
                self._interfaces.release(held)
                self._kernel.uncount_interface(held.link.ifindex)
            elif wanted is not None and (held is None or held.request != wanted):
                self._hold_again(name, wanted)
        if undo.interfaces:
            self._apply_interfaces(self._interfaces.protected())
            self._look_around()

    def _hold_again(self, name: str, wanted: InterfaceRequest) -> None:
        link = next((each for each in self._kernel.links() if each.name == name), None)
        if link is not None:
            tell(self._following.hold(self._interfaces.hold, link, wanted))

    def _audit_rollback(self, change: PendingChange, why: str) -> None:
        counts = {"added": change.removed, "removed": change.added, "changed": change.changed}
        self._audit("change.rollback", str(change.id), what=change.what, why=why, **counts)

    # -- time

    def _roll_back_overdue(self) -> None:
        overdue = [each for each in self._waiting.values() if each.due <= self._steady()]
        for each in reversed(overdue):
            with self._changing_alone():
                self._roll_back(each, _TOO_LATE)

    def _until_due(self) -> float:
        """Seconds; endless where nothing waits."""
        due = min((each.due for each in list(self._waiting.values())), default=inf)
        return max(0.0, due - self._steady())

    def _take_up_pending(self) -> None:
        """At the start, before anything is put into the maps: what ran out, or waited when the host went down, is taken
        back in the store; the rest goes on waiting."""
        pending = self._undo_log.changes("pending")
        for change in pending:
            if self._still_waits(change):
                self._watch_pending(change)
        for change in [each for each in reversed(pending) if not self._still_waits(each)]:
            reason = _TOO_LATE if change.boot == self._boot else "the host went down before it was confirmed"
            requests = self._undo_log.interfaces(change.id)
            with self._store.transaction():
                self._undo_log.take_back(change.id, reason, self._clock())
                self._audit_rollback(change, reason)
            for name, request in requests.items():
                self._interfaces.remember(name, request)
            log.warning("change rolled back", change=change.id, what=change.what, reason=reason)

    def take_back_in_store(self) -> None:
        """Instead of a start, where nothing judges that would have to be told."""
        with self._lock:
            self._take_up_pending()

    def _still_waits(self, change: PendingChange) -> bool:
        return change.boot == self._boot and (change.id in self._waiting or change.due > self._steady())


def _entries(parts: Sequence[BlockRules]) -> list[Entries]:
    return [
        block_entries(
            each.block, PrefixColumns(each.block.version, each.lengths, each.addresses), each.numbers
        )
        for each in parts
        if len(each.numbers)
    ]
