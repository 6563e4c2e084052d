"""Changes of sets: made, described, deleted, and their entries by the million.

Owns what is new in a set, whose it is and who needs it. A change of entries is one change of the rules that name the
set, performed by firewall.commit. What is stored of an entry is firewall.set_store's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from firewall.entry_columns import Wanted, wanted
from firewall.errors import Conflict, Problem
from firewall.rule import parse_id
from firewall.set_entries import EntryColumns
from firewall.set_expiry import SetExpiry
from firewall.set_keys import NO_KEYS, SetDelta, between, delta
from firewall.set_store import StoredSet
from firewall.view import EntriesOutcome, SetView

API = "api"  # the source of sets that requests fill
_FEW_KEPT = 10  # of how many entries one stays, where all the others are deleted at once


class SetChanges(SetExpiry):
    """Every public method may be called from any thread. `source` says who asks: entries of a set are changed by its
    own source alone, or Conflict is raised. NotFound: there is no such set."""

    # -- sets

    def put_set(self, name: str, description: str | None = None, source: str = API) -> tuple[SetView, bool]:
        """Makes a set, or describes one anew (None: as it is); whether it is new."""
        parse_id(name)
        with self._changing_alone():
            present = self._set_store.by_name(name)
            now = self._clock()
            if present is None:
                self._consider_set(name, ())
                after = {"description": description or "", "source": source}
                self._write_set(
                    "set.create", name, lambda: self._set_store.create(name, description or "", source, now),
                    after=after,
                )  # fmt: skip
                self._ruleset.sets = {**self._ruleset.sets, name: NO_KEYS}
                self._confirm_later()
                return self.set(name), True
            self._check_source(present, source)
            self._consider_set(name, ())
            text = present.description if description is None else description
            if text != present.description:
                self._write_set(
                    "set.change", name, lambda: self._set_store.describe(present.number, text, source, now), present,
                    {"description": text, "source": source},
                )  # fmt: skip
                self._confirm_later()
            return self.set(name), False

    def give_set(self, name: str, source: str) -> None:
        """Makes it another source's, whoever had it."""
        with self._changing_alone():
            present = self._stored_set(name)
            with self._store.transaction():
                self._set_store.describe(present.number, present.description, source, self._clock())
                self._audit("set.give", name, {"source": present.source}, {"source": source})

    def delete_set(self, name: str, source: str = API) -> None:
        """Raises Conflict where rules name it."""
        with self._changing_alone():
            present = self._stored_set(name)
            self._check_source(present, source)
            self._check_unused(name)
            self._consider_set(name, (), removed=len(self._ruleset.sets.get(name, NO_KEYS)))
            self._write_set("set.delete", name, lambda: self._set_store.delete(present.number), present)
            self._ruleset.forget_set(name)
            self._confirm_later()

    def _write_set(
        self,
        action: str,
        name: str,
        write: Callable[[], object],
        before: StoredSet | None = None,
        after: Mapping[str, object] | None = None,
    ) -> None:
        """With what takes it back, where it goes unless confirmed. `action`, `after`: for the audit."""
        with self._store.transaction():
            if self._is_unconfirmed:
                self._begin_pending(0, 0, 0)
                if before is not None:
                    self._undo_log.save_set(self._pending_id, before.number)
            made = write()
            if self._is_unconfirmed and isinstance(made, StoredSet):
                self._undo_log.save_new_set(self._pending_id, made.number, name)
            was = None if before is None else {"description": before.description, "source": before.source}
            self._audit(action, name, was, after, confirm=self._confirmed_by)

    @property
    def _confirmed_by(self) -> int | None:
        return self._pending_id if self._is_unconfirmed else None

    def _confirm_later(self) -> None:
        if self._is_unconfirmed:
            self._await_confirmation()

    def _check_source(self, present: StoredSet, source: str) -> None:
        if present.source != source:
            raise Conflict(
                f"set {present.name!r} is filled by {present.source}",
                "change it there; or make a set of your own, and name both in the rule",
                code="set_managed",
            )

    def _check_unused(self, name: str) -> None:
        users = self._users_of(name)
        if users:
            named = ", ".join(users[:10]) + (f" and {len(users) - 10} more" if len(users) > 10 else "")
            raise Conflict(
                f"set {name!r} is named by {'rule' if len(users) == 1 else 'rules'} {named}",
                "delete these rules, or let them name another set, first",
                tuple(Problem("", f"rule {each!r} names it") for each in users[:100]),
                code="set_in_use",
            )
        waiting = self._undo_log.awaits_set(name)
        if waiting is not None:
            raise self._is_pending(waiting, f"a rule that names set {name!r}")

    # -- entries

    def add_entries(self, name: str, columns: Sequence[EntryColumns], source: str = API) -> EntriesOutcome:
        """Entries that are there already get the time and, where one is given, the comment that comes with them."""
        with self._changing_alone():
            present, asked = self._stored_set(name), wanted(columns)
            self._check_source(present, source)
            self._take_out_first(asked.keys)
            before = self._ruleset.sets[name]
            come = asked.keys.minus(before)
            known = asked.only(asked.keys.changed(NO_KEYS, come))
            change = delta(before, come, NO_KEYS)
            return self._change_entries("set.add", present, change, asked.only(come), known)

    def replace_entries(
        self, name: str, columns: Sequence[EntryColumns], source: str = API
    ) -> EntriesOutcome:
        """Makes the set just these, at one moment for packets."""
        with self._changing_alone():
            present, asked = self._stored_set(name), wanted(columns)
            self._check_source(present, source)
            self._take_out_first(asked.keys)
            change = between(self._ruleset.sets[name], asked.keys)
            known = asked.only(asked.keys.changed(NO_KEYS, change.come))
            come = asked.only(change.come)
            return self._change_entries("set.replace", present, change, come, known, keep_comments=False)

    def delete_entries(self, name: str, columns: Sequence[EntryColumns], source: str = API) -> EntriesOutcome:
        """Just these prefixes, not what lies in them."""
        with self._changing_alone():
            present, asked = self._stored_set(name), wanted(columns)
            self._check_source(present, source)
            self._take_out_first(asked.keys)
            before = self._ruleset.sets[name]
            gone = asked.keys.common(before)
            nothing = asked.only(NO_KEYS)
            change = delta(before, NO_KEYS, gone)
            outcome = self._change_entries("set.remove", present, change, nothing, nothing)
            return EntriesOutcome(removed=outcome.removed, missing=len(asked.keys) - len(gone))

    def preview_entries(self, name: str, columns: Sequence[EntryColumns], is_whole: bool) -> EntriesOutcome:
        """What replacing all (`is_whole`) or adding would bring and take; what stays is not compared: unchanged."""
        asked = wanted(columns).keys
        with self._lock:
            self._stored_set(name)
            before = self._ruleset.sets[name]
        come = asked.minus(before)
        gone = len(before.minus(asked)) if is_whole else 0
        return EntriesOutcome(added=len(come), removed=gone, unchanged=len(asked) - len(come))

    def _change_entries(
        self,
        action: str,
        present: StoredSet,
        change: SetDelta,
        come: Wanted,
        known: Wanted,
        keep_comments: bool = True,
    ) -> EntriesOutcome:
        """`come`: entries that are not there yet; `known`: that are there and stay. `action`: for the audit."""
        there = len(known.keys)
        if there and not (known.has_particulars or self._set_store.has_particulars(present.number)):
            known = known.only(NO_KEYS)
        refreshed = 0

        def write() -> None:
            nonlocal refreshed
            if self._is_unconfirmed:
                self._begin_pending(len(change.come), len(change.gone), len(known.keys))
                self._undo_log.save_set(self._pending_id, present.number)
            refreshed = self._write_entries(present.number, change, come, known, keep_comments)
            self._spare_keys(present.name, known.keys)
            if refreshed or not change.is_empty:
                self._set_store.note_update(present.number, self._clock())
                self._audit_entries(
                    action, present.name, change, refreshed=refreshed or None, source=present.source,
                    confirm=self._confirmed_by,
                )  # fmt: skip

        if self._is_rehearsal and len(known.keys):
            refreshed = self._try_refreshing(present, known, keep_comments)
        plan = self._ruleset.plan(
            (), (), self._interfaces.protected(), deltas={} if change.is_empty else {present.name: change}
        )
        self._check_room(plan)
        counts = len(change.come), len(change.gone), refreshed
        self._consider_set(present.name, (plan,), *counts, unchanged=there - refreshed)
        self._perform(plan, write, set(), [])
        self._confirm_later()
        return EntriesOutcome(len(change.come), len(change.gone), refreshed, there - refreshed)

    def _write_entries(
        self, number: int, change: SetDelta, come: Wanted, known: Wanted, keep_comments: bool
    ) -> int:
        now, store = self._clock(), self._set_store
        if len(change.gone) * _FEW_KEPT > len(change.before) * (_FEW_KEPT - 1):
            store.delete_all_but(number, change.before.changed(NO_KEYS, change.gone))
        else:
            store.delete_entries(number, change.gone)
        if not come.differs:
            store.insert(number, come.keys, come.expires_at, come.comment, now)
        else:
            for version, keys, until, comments in come.rows():
                store.insert_each(number, version, keys, until, comments, now)
        return sum(
            store.refresh(number, version, keys, until, comments, now, keep_comments)
            for version, keys, until, comments in known.rows()
        )

    def _try_refreshing(self, present: StoredSet, known: Wanted, keep_comments: bool) -> int:
        """How many would change. Nothing of it stays."""
        self._store.begin()
        try:
            empty = delta(NO_KEYS, NO_KEYS, NO_KEYS)
            return self._write_entries(present.number, empty, known.only(NO_KEYS), known, keep_comments)
        finally:
            self._store.rollback()
