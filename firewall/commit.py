"""Makes changes durable and puts them into the kernel, both or neither; those that wait together, with one COMMIT.

Owns the order of a change (check room, write, apply, commit), the group of changes that share a transaction, and
taking back. What a change is, others plan.

A group: each change that edits address entries alone is planned, written behind a savepoint and applied to the kernel
on its own, on top of those before it. One that is refused leaves no trace and the others go on. Then one COMMIT makes
all durable, and only then are they answered. Where it fails, all are taken back, the last first, and all get the
error: also those that were refused meanwhile, for they may have been refused because of another. Other threads see
nothing of it before: the lock is held, and the store shows them what is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import structlog

from firewall.datapath import Change
from firewall.departing import Departing
from firewall.errors import FirewallError, StoreFailed, table_full
from firewall.hits import NO_HITS, Hits
from firewall.rule import Rule
from firewall.ruleset import RulesetPlan
from firewall.set_keys import SetKeys, set_keys_of
from firewall.store import Record, TransactionLost

log = structlog.get_logger()


@dataclass(slots=True)
class Outcome:
    """What a call answered, or what it raised."""

    value: object = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class _Made:
    """A change that waits for COMMIT. `gone`: the hits of entries that it took."""

    removed: Sequence[Record]
    written: Sequence[Record]
    gone: dict[int, Hits]


@dataclass(slots=True)
class _Group:
    """`first`: of the outcomes, the first that hangs on the transaction that is open. `owed`: what was owed before it
    and is written in it."""

    outcomes: list[Outcome] = field(default_factory=list)
    is_open: bool = False
    first: int = 0
    made: list[_Made] = field(default_factory=list)
    owed: dict[int, Hits] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Handles:
    """Of rules that go for good, some of them by the million."""

    some: Collection[int]
    ranges: Sequence[range]

    def __contains__(self, handle: object) -> bool:
        return handle in self.some or any(handle in each for each in self.ranges)


class Commits(Departing):
    """Performs plans."""

    _group: _Group | None = None

    def together(self, calls: Iterable[Callable[[], object]]) -> list[Outcome]:
        """Calls methods of this object that change something, in order. Answered when all of them are durable."""
        with self._lock, self._store.changing():
            group = self._group = _Group()
            try:
                for call in calls:
                    group.outcomes.append(_outcome(call))
                with suppress(FirewallError):  # it is in the outcomes
                    self._close_group()
            except BaseException as error:
                if group.is_open:
                    self._give_up(group, StoreFailed(f"the service failed: {error!r}"))
                raise
            finally:
                self._group = None
        return group.outcomes

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Around a change, before anything is looked up for it."""
        with self._lock:
            self._mend()
            yield

    @contextmanager
    def _changing_alone(self) -> Iterator[None]:
        """Around a change that no other shares the transaction with."""
        with self._changing():
            self._close_group()
            yield

    def _change(
        self,
        removed: Sequence[Record],
        written: Sequence[Record],
        unchanged: int = 0,
        action: str | None = None,
    ) -> None:
        """Rules go and come; a record in both changed. `unchanged`: how many were asked for that are there already.
        `action`: as the audit calls it, where the rules do not say."""
        if self._has_fallen:
            self._take_out_first(_prefixes_of(each.rule for each in (*removed, *written)))
        plan = self._ruleset.plan(removed, written, self._interfaces.protected())
        if self._caution is not None:
            if self._caution.dry_run:
                self._check_room(plan)
            self._consider(plan, removed, written, unchanged)
            if self._is_unconfirmed:
                self._change_until_confirmed(plan, removed, written, action)
                return
        kept = {each.handle for each in written}
        deleted = [each.handle for each in removed if each.handle not in kept]

        def write() -> None:
            encoded = self._store.write_rules(deleted, written)
            self._audit_rules(action, removed, written, encoded)

        if self._group is not None and plan.policy is None:
            self._join(self._group, plan, write, _Made(removed, written, {}), set(deleted))
            return
        self._close_group()
        self._perform(plan, write, set(deleted), self._leaving_policy(plan, kept))

    def _leaving_policy(self, plan: RulesetPlan, kept: Collection[int]) -> list[tuple[int, int]]:
        """Handle and slot of rules that the policy loses and whose hits must not be lost."""
        if plan.policy_rules is None:
            return []
        rules, after = self._ruleset.policy_rules, plan.policy_rules
        return [(handle, rules[handle].slot) for handle in rules.keys() & set(kept) if handle not in after]

    def _change_until_confirmed(
        self,
        plan: RulesetPlan,
        removed: Sequence[Record],
        written: Sequence[Record],
        action: str | None,
    ) -> None:
        """As _change(), and what takes it back is written with it. What deleted rules counted is kept for them."""
        old, new = {each.handle for each in removed}, {each.handle for each in written}
        counts = len(new - old), len(old - new), len(old & new)

        def write() -> None:
            self._begin_pending(*counts)
            self._undo_log.save_rules(self._pending_id, removed, written)
            encoded = self._store.write_rules(sorted(old - new), written, keep_hits=True)
            self._audit_rules(action, removed, written, encoded, self._pending_id)

        self._close_group()
        self._perform(plan, write, set(), self._leaving_policy(plan, old | new))
        self._await_confirmation()

    # -- alone

    def _perform(
        self,
        plan: RulesetPlan,
        write: Callable[[], None],
        deleted: Container[int],
        left_policy: Sequence[tuple[int, int]],
        has_room: bool = False,
    ) -> None:
        """Store and kernel, both or neither. `left_policy`: handle and slot of rules that the policy loses and whose
        hits must not be lost, as of those that the address tables get. `has_room`: it was here before."""
        if not has_room:
            self._check_room(plan)
        self._reserve_for(plan)
        gone: dict[int, Hits] | None = None
        owed, self._owed = self._owed, {}
        try:
            with self._store.transaction():
                self._store.add_hits(owed.items())
                write()
                hits = self._kernel.policy_hits([slot for _, slot in left_policy])
                gone = self._apply(plan.change)
                self._save_gone(gone, deleted)
                self._store.add_hits(zip((handle for handle, _ in left_policy), hits, strict=True))
        except BaseException as error:
            self._owe(owed)
            self._note(error)
            if gone is not None:
                self._take_back(plan.change, gone)
            raise
        self._committed(plan)

    def _save_gone(self, gone: dict[int, Hits], deleted: Container[int]) -> None:
        self._store.add_hits((handle, hits) for handle, hits in gone.items() if handle not in deleted)

    def _committed(self, plan: RulesetPlan) -> None:
        """Memory follows a change that the kernel has."""
        before = self._ruleset.addresses.layers
        self._ruleset.commit(plan)
        try:
            self._spare_touched(plan, before)
        except FirewallError as refusal:
            self._drift(refusal)

    # -- in a group

    def _join(
        self, group: _Group, plan: RulesetPlan, write: Callable[[], None], made: _Made, deleted: set[int]
    ) -> None:
        self._check_room(plan)
        self._reserve_for(plan)
        gone: dict[int, Hits] | None = None
        try:
            if not group.is_open:
                self._open_group(group)
            with self._store.savepoint():
                write()
                gone = self._apply(plan.change)
                self._save_gone(gone, deleted)
        except BaseException as error:
            self._note(error)
            if gone is not None:
                self._take_back(plan.change, gone)
            if isinstance(error, TransactionLost):
                self._give_up(group, error)
            raise
        self._committed(plan)
        made.gone.update(gone)
        group.made.append(made)

    def _open_group(self, group: _Group) -> None:
        self._store.begin()
        try:
            self._store.add_hits(self._owed.items())
        except BaseException:
            self._store.rollback()
            raise
        group.is_open, group.first, group.made = True, len(group.outcomes), []
        group.owed, self._owed = self._owed, {}

    def _close_group(self) -> None:
        """What waits becomes durable. Raises StoreFailed where it cannot, and then nothing of it is left."""
        group = self._group
        if group is None or not group.is_open:
            return
        try:
            self._store.commit()
        except Exception as error:
            self._note(error)
            self._give_up(group, error)
            raise
        group.is_open = False

    def _give_up(self, group: _Group, error: Exception) -> None:
        """Takes back all of the open transaction."""
        group.is_open = False
        for each in group.outcomes[group.first :]:
            each.value, each.error = None, error
        for owed in (group.owed, *(made.gone for made in group.made)):
            self._owe(owed)
        with suppress(FirewallError):  # the next transaction cannot begin then, and says so
            self._store.rollback()
        try:
            for made in reversed(group.made):
                plan = self._ruleset.plan(made.written, made.removed, self._interfaces.protected())
                self._owe(self._apply(plan.change))
                self._committed(plan)
        except Exception as refusal:
            self._drift(refusal)
        self._forget_who_never_was()

    # -- taking back

    def _take_back(self, change: Change, gone: dict[int, Hits]) -> None:
        """A change that the kernel made and the store did not."""
        self._owe(gone)
        try:
            self._owe(self._apply(change.inverse()))
        except Exception as refusal:
            self._drift(refusal)
        self._forget_who_never_was()

    def _owe(self, hits: dict[int, Hits]) -> None:
        for handle, each in hits.items():
            if each.packets:
                self._owed[handle] = self._owed.get(handle, NO_HITS).plus(each)

    def _forget_who_never_was(self) -> None:
        """Handles of rules that did not become durable are given again."""
        end = self._store.next_handle
        self._owed = {handle: hits for handle, hits in self._owed.items() if handle < end}

    def _drift(self, refusal: Exception) -> None:
        self._adrift = f"the maps may differ from the rules: a change could not be taken back ({refusal})"
        self.last_error = self._adrift
        log.error("maps and rules may differ", error=str(refusal))

    def _mend(self) -> None:
        """Where maps and store may differ, the maps are made as the store says before anything else happens. Raises
        FirewallError while that cannot be."""
        if self._adrift is None:
            return
        slots = {handle: each.slot for handle, each in self._ruleset.policy_rules.items()}
        try:
            self._load(slots, self._interfaces.protected())
        except FirewallError as error:
            self._note(error)
            raise
        self._adrift = None
        log.info("maps hold the rules again")

    def _note(self, error: BaseException) -> None:
        if isinstance(error, FirewallError):
            self.last_error = str(error)
        if isinstance(error, StoreFailed):
            self._watched.note_store(error.detail)

    # -- room

    def _check_room(self, plan: RulesetPlan) -> None:
        """Raises TableFull before anything is written. Planning raised it where the policy is full."""
        before = self._ruleset.addresses.sizes()
        for version, wanted in self._ruleset.addresses.sizes(plan.addresses).items():
            if wanted > self._limits.addresses and wanted > before[version]:
                limit = self._limits.addresses
                raise table_full(f"address{version}", limit, wanted, "bpf.max_addresses", "addresses")

    def _reserve_for(self, plan: RulesetPlan) -> None:
        """Room for the old and the new entries at once: both are there for a moment."""
        new = plan.addresses.new_keys()
        sizes = {version: size + new[version] for version, size in self._ruleset.addresses.sizes().items()}
        self._reserve(sizes, plan.policy or self._ruleset.policy)


def _prefixes_of(rules: Iterable[Rule]) -> SetKeys | None:
    """None where sets are among them."""
    prefixes = []
    for rule in rules:
        if rule.sets:
            return None
        prefixes += [*rule.sources, *rule.destinations]
    return set_keys_of(prefixes)


def _outcome(call: Callable[[], object]) -> Outcome:
    try:
        return Outcome(call())
    except Exception as error:
        return Outcome(error=error)
