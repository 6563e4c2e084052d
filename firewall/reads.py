"""What the firewall tells: rules with their hits, interfaces, counters, status.

Answers from what is durable and in force. Reads nothing that a change has not finished; where a long change holds the
lock, status, readiness and counters are told as they were last seen.
"""

from __future__ import annotations

import platform
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import numpy as np

from firewall.address import Prefix
from firewall.counts import Counts
from firewall.errors import NotFound
from firewall.layout import HOOKS, REASONS, VERDICTS
from firewall.matching import Sets
from firewall.rule import Rule
from firewall.store import InterfaceTotal, Record
from firewall.timings import Timing
from firewall.view import (
    CounterView,
    InterfaceView,
    MapView,
    MeasuredView,
    PanicView,
    RuleQuery,
    RuleView,
    StatusView,
)

T = TypeVar("T")
_PATIENCE_S = 0.1
MOST_MEASURED = 300  # rules with metrics of their own


class Reads(Counts):
    """Every method may be called from any thread."""

    def etag(self) -> str:
        return self._etag_of(self._store.revision)

    def _etag_of(self, revision: int) -> str:
        return f'"{self._store.identity}-{revision}"'

    @property
    def revision(self) -> int:
        return self._store.revision

    def new_rule_id(self) -> str:
        """Ids that sort by the time they were made."""
        return f"r-{int(self._clock() * 1000):011x}-{secrets.token_hex(4)}"

    def rule(self, rule_id: str) -> RuleView:
        return self._view(self._present(rule_id))

    def rules(self, query: RuleQuery, offset: int, limit: int) -> tuple[list[RuleView], int]:
        among = None if query.address is None else self._covering(query.address)
        if query.unused_for_s is not None:
            return self._unused_page(query, offset, limit, among)
        records, total = self._store.page(query, offset, limit, among)
        return self._views(records), total

    def _unused_page(
        self, query: RuleQuery, offset: int, limit: int, among: Sequence[int] | None
    ) -> tuple[list[RuleView], int]:
        handles = self._unused(query, is_first=offset == 0)
        if among is not None:
            handles = handles[np.isin(handles, among)]
        records = self._store.by_handles(handles[offset : offset + limit].tolist())
        return self._views(sorted(records, key=lambda each: each.handle)), len(handles)

    def _covering(self, prefix: Prefix) -> list[int]:
        """Handles of rules whose sources or destinations cover a prefix."""
        with self._lock:
            entries = self._ruleset.addresses.covering(prefix.version, prefix.address, prefix.length)
            handles = {entry.handle for entry in entries}
            handles |= {
                each.handle
                for each in self._ruleset.policy_rules.values()
                if _covers(each.rule, prefix, self._ruleset.sets)
            }
            sets = self._ruleset.sets
        handles |= {each.handle for each in self._store.disabled() if _covers(each.rule, prefix, sets)}
        return sorted(handles)

    def export(self) -> tuple[Iterator[Rule], str]:
        """As it is at one moment. No change waits for whoever reads it."""
        revision, records = self._store.at_one_moment()
        return (each.rule for each in records), self._etag_of(revision)

    def count(self) -> int:
        return self._store.count()

    def _view(self, record: Record) -> RuleView:
        return self._views([record])[0]

    def _views(self, records: Sequence[Record]) -> list[RuleView]:
        counted = self._counted(records)
        return [
            RuleView(
                each.rule, each.created_at, each.updated_at, hits.packets, hits.bytes, hits.last_hit or None
            )
            for each, hits in zip(records, counted, strict=True)
        ]

    # -- the host: now, or while a change holds the lock, as last seen

    def _seen_now(self, name: str, look: Callable[[], T], unseen: T) -> T:
        if not self._lock.acquire(timeout=_PATIENCE_S):
            return cast("T", self._last_seen.get(name, unseen))
        try:
            self._last_seen[name] = seen = look()
        finally:
            self._lock.release()
        return seen

    def _look_around(self) -> None:
        """So that there is something to tell whenever it is asked."""
        self.interfaces(), self.counters(), self.fills(), self.measured(), self.not_ready()

    def interfaces(self) -> list[InterfaceView]:
        return self._seen_now("interfaces", self._interfaces.views, [])

    def interface(self, name: str) -> InterfaceView:
        for view in self.interfaces():
            if view.name == name:
                return view
        raise NotFound(
            f"{name!r} is not protected",
            "GET /v1/interfaces lists those that are",
            code="interface_not_found",
        )

    def counters(self) -> list[CounterView]:
        """Saved and live, by interface name."""
        return self._seen_now("counters", self._counters, [])

    def _counters(self) -> list[CounterView]:
        names = {ifindex: name for name, ifindex in self._interfaces.protected().items()}
        live = self._kernel.interface_hits() if self._is_started else {}
        totals = self._store.interface_totals()
        totals += [InterfaceTotal(names.get(i, f"#{i}"), *each) for i, hits in live.items() for each in hits]
        packets: Counter[tuple[str, int, int, int]] = Counter()
        size: Counter[tuple[str, int, int, int]] = Counter()
        for each in totals:
            packets[each[:4]] += each.packets
            size[each[:4]] += each.bytes
        return [
            CounterView(
                HOOKS[hook],
                name,
                VERDICTS[verdict],
                REASONS[reason],
                count,
                size[name, hook, verdict, reason],
            )
            for (name, hook, verdict, reason), count in sorted(packets.items())
        ]

    def measured(self) -> MeasuredView:
        """Rules with the label metrics=true, the oldest of them."""
        return self._seen_now("measured", self._measured, MeasuredView())

    def _measured(self) -> MeasuredView:
        records, total = self._store.measured(MOST_MEASURED)
        return MeasuredView(tuple(self._views(records)), total - len(records))

    def rules_by_structure(self) -> dict[str, int]:
        """`none`: of disabled ones."""
        disabled, policy = self._store.count_disabled(), len(self._ruleset.policy_rules)
        address = max(0, self._store.count() - disabled - policy)
        return {"address": address, "policy": policy, "none": disabled}

    @property
    def commits(self) -> Timing:
        """How long it took to make changes durable."""
        return self._store.commits.read()

    def fills(self) -> list[MapView]:
        return self._seen_now("fills", self._fills, [])

    def _fills(self) -> list[MapView]:
        sizes = self._ruleset.addresses.sizes()
        return [MapView(*each) for each in self._kernel.fills(len(self._ruleset.policy_rules), sizes)]

    def not_ready(self) -> list[str]:
        """Why packets may not be judged as asked; empty when all is well."""
        if not self._is_started:
            return ["starting"]
        adrift = self._adrift
        faults: list[str] = self._seen_now("faults", self._faults, [])
        return faults if adrift is None else [adrift, *faults]

    def _faults(self) -> list[str]:
        return [*self._interfaces.faults(), *self._watched.store_fault(), *self._watched.details()]

    def never_drop(self) -> tuple[Prefix, ...]:
        return self._shield.never_drop

    def status(self) -> StatusView:
        now = self._clock()
        not_ready = tuple(self.not_ready())
        adrift = (self._adrift,) if self._adrift is not None else ()
        drift: list[str] = self._seen_now("drift", self._watched.details, []) if self._is_started else []
        return StatusView(
            version=self._about.version,
            ready=not not_ready,
            not_ready=not_ready,
            started_at=self._started_at,
            uptime_s=max(0.0, now - self._started_at),
            kernel=platform.release(),
            bcc=self._kernel.bcc,
            pin_root=self._about.pin_root,
            rules=self._store.count(),
            revision=self._store.revision,
            default_ingress=self._about.default_ingress,
            default_egress=self._about.default_egress,
            interfaces=tuple(self.interfaces()),
            maps=tuple(self.fills()) if self._is_started else (),
            drift=(*adrift, *drift),
            drift_detected=dict(self._watched.detected),
            drift_healed=dict(self._watched.healed),
            last_error=self.last_error,
            never_drop=tuple(str(prefix) for prefix in self._shield.never_drop),
            panic=self.panic(),
            sets=len(self._ruleset.sets),
            set_entries=sum(map(len, self._ruleset.sets.values())),
        )

    def panic(self) -> PanicView:
        panic = self._panic
        if panic is None:
            return PanicView(False, None, 0.0, 0)
        now = self._clock()
        left = max(0.0, panic.left_s(now))
        return PanicView(True, now + left, left, len(panic.kept))

    def _present(self, rule_id: str) -> Record:
        record = self._store.by_id(rule_id)
        if record is None:
            raise NotFound(f"there is no rule {rule_id!r}", "list the rules with GET /v1/rules")
        return record


def _covers(rule: Rule, prefix: Prefix, sets: Sets) -> bool:
    if any(each.covers(prefix) for each in (*rule.sources, *rule.destinations)):
        return True
    return any(
        any(sets[name].covering(prefix.version, prefix.address, prefix.length))
        for name in rule.sets
        if name in sets
    )
