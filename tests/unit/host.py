"""A host for the enforcer's tests: its kernel in memory with counters and faults, its clock turned by hand.

The kernel notices what a real one could not do (an edit of an entry that is not as the change says, a bit
cleared twice) and keeps what a real one keeps when the service is killed. No rule is understood here.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from api.wiring import DATABASE, build
from firewall.address import parse_prefix
from firewall.address_index import decoded
from firewall.datapath import Change, Image, Key, Link, Occupancy
from firewall.enforcer import Enforcer
from firewall.errors import kernel_refused
from firewall.hits import NO_HITS, Hits, InterfaceHits
from firewall.named_sets import Counters, CountingSet
from firewall.policy import Policy
from firewall.rule import Rule, rule_from_fields
from firewall.settings import Settings
from tests.memory_kernel import MemoryKernel

NOW = 1_700_000_000.0


class HostKernel(MemoryKernel):
    """`refuse`: errno by method, answered until it is taken out. `after`: calls of it that still succeed."""

    def __init__(self) -> None:
        super().__init__()
        self.refuse: dict[str, int] = {}
        self.after = 0
        self.calls = 0
        self.occupancy = Occupancy()
        self.entry_hits: dict[Key, Hits] = {}
        self.slot_hits: dict[int, Hits] = {}
        self.counted_entries: dict[int, Hits] = {}
        self.counted: dict[int, list[InterfaceHits]] = {}
        self.reserved: list[tuple[dict[int, int], int, int]] = []
        self.is_pinned = False

    def _ask(self, method: str) -> None:
        if method in self.refuse:
            self.calls += 1
            if self.calls > self.after:
                raise kernel_refused(f"{method} in memory", self.refuse[method])

    def start(self, owner: int) -> dict[int, int]:
        self._ask("start")
        self.is_pinned = True
        if self.policy is None:
            return {}
        records = [each for image in self.policy.hooks for each in image.rules if each["handle"]]
        return {int(each["handle"]): int(each["slot"]) for each in records}

    def stop(self, keep: bool = False) -> None:
        self._ask("stop")
        if keep:
            return
        self.is_pinned = False
        self.entries, self.policy, self.occupancy = {}, None, Occupancy()
        self.entry_hits, self.slot_hits, self.counted = {}, {}, {}
        self.counted_entries = {}

    def reserve(self, entries: Mapping[int, int], policy: Policy) -> None:
        self._ask("reserve")
        self.reserved.append((dict(entries), policy.vector_count, policy.interval_count))

    def reconcile(self, image: Image) -> None:
        self._ask("reconcile")
        before = self.entries
        super().reconcile(image)
        self.entry_hits = {
            key: hits
            for key, hits in self.entry_hits.items()
            if key in self.entries and self.entries[key].handle == before[key].handle
        }
        self.occupancy = image.occupancy
        self._clear(image.fresh_slots, image.fresh_entries)

    def apply(self, change: Change) -> dict[int, Hits]:
        self._ask("apply")
        assert change.before == self.occupancy
        assert change.policy is None or change.policy_before is self.policy
        assert not any(key in self.entries for each in change.come for key, _ in decoded(each))
        gone: dict[int, Hits] = {}
        for key, old, new in change.edits:
            if old is not None and (new is None or new.handle != old.handle):
                hits = self.entry_hits.pop(key, NO_HITS)
                gone[old.handle] = gone.get(old.handle, NO_HITS).plus(hits)
        super().apply(change)
        self.occupancy = change.after
        self._clear(change.fresh_slots, change.fresh_entries)
        return gone

    def _clear(self, slots: Sequence[int], counters: Counters) -> None:
        for slot in slots:
            self.slot_hits.pop(slot, None)
        for counter in counters.tolist():
            self.counted_entries.pop(counter, None)

    def address_hits(self, keys: Sequence[Key]) -> list[Hits]:
        return [self.entry_hits.get(key, NO_HITS) for key in keys]

    def all_address_hits(self) -> dict[int, Hits]:
        hits: dict[int, Hits] = {}
        for key, each in self.entry_hits.items():
            handle = self.entries[key].handle
            hits[handle] = hits.get(handle, NO_HITS).plus(each)
        return hits

    def address_rules_hit_since(self, moment: float) -> npt.NDArray[np.uint32]:
        hits = self.all_address_hits().items()
        return np.array([handle for handle, each in hits if each.last_hit >= moment], np.uint32)

    def counting_sets(self) -> Mapping[int, CountingSet]:
        return {} if self.policy is None else self.policy.named.known

    def hits_of_entries(self, counters: Counters) -> list[Hits]:
        return [self.counted_entries.get(counter, NO_HITS) for counter in counters.tolist()]

    def policy_hits(self, slots: Sequence[int]) -> list[Hits]:
        self._ask("policy_hits")
        return [self.slot_hits.get(slot, NO_HITS) for slot in slots]

    def count_interface(self, ifindex: int) -> None:
        self._ask("count_interface")
        self.counted.setdefault(ifindex, [])

    def uncount_interface(self, ifindex: int) -> list[InterfaceHits]:
        return self.counted.pop(ifindex, [])

    def interface_hits(self) -> Mapping[int, list[InterfaceHits]]:
        return self.counted

    def attach(self, link: Link, hook: int, mode: str, force: bool = False) -> None:
        self._ask("attach")
        super().attach(link, hook, mode, force)

    def detach(self, link: Link, hook: int) -> None:
        self._ask("detach")
        super().detach(link, hook)

    # -- what happens on the host

    def remove_link(self, name: str) -> None:
        """Its hooks go with it."""
        self.host_links = [link for link in self.host_links if link.name != name]
        self.hooks = {at: program for at, program in self.hooks.items() if at[0] != name}

    def add_link(self, name: str, ifindex: int) -> None:
        self.host_links.append(Link(ifindex, name, True, True))

    def rename_link(self, name: str, new_name: str) -> None:
        """Its programs stay."""
        self.host_links = [
            link._replace(name=new_name) if link.name == name else link for link in self.host_links
        ]
        self.hooks = {
            (new_name if link == name else link, hook): each for (link, hook), each in self.hooks.items()
        }

    def on(self, name: str) -> dict[str, str]:
        """Modes of our programs by hook."""
        names = ("ingress", "egress")
        return {
            names[hook]: each.mode
            for (link, hook), each in self.hooks.items()
            if link == name and each.is_ours
        }


class Host:
    """`firewall` runs between start() and stop() or kill(). `now`: its clock."""

    def __init__(self, directory: Path, **sections: object) -> None:
        self.settings = Settings.model_validate({"state": {"directory": str(directory)}, **sections})
        self.database = self.settings.state.directory / DATABASE
        self.kernel = HostKernel()
        self.now = NOW
        self._running: Enforcer | None = None

    @property
    def firewall(self) -> Enforcer:
        assert self._running is not None
        return self._running

    def start(self, **sections: object) -> Enforcer:
        """With other sections of the config than before, if any are given."""
        if sections:
            self.settings = Settings.model_validate({**self.settings.model_dump(), **sections})
        self._running = build(self.settings, lambda _: self.kernel, lambda: self.now)
        self._running.start()
        return self._running

    def stop(self, keep: bool = False) -> None:
        if self._running is not None:
            self._running.stop(keep)
            self._running = None

    def kill(self) -> None:
        """The maps and hooks stay as they are."""
        self.firewall._stopping.set()
        self.firewall._watcher.join()
        self.firewall._store.close()
        self._running = None

    def stored(self, audit: bool = True) -> str:
        """Everything that is durable; or all but what was entered in the audit."""
        with sqlite3.connect(self.database) as connection:
            of_audit = 'INSERT INTO "audit"'
            dump = "\n".join(line for line in connection.iterdump() if audit or not line.startswith(of_audit))
        connection.close()
        return dump

    def state(self, audit: bool = True) -> dict[str, Any]:
        """All that a refused change must leave as it was."""
        kernel, policy = self.kernel, self.kernel.policy
        assert policy is not None
        return {
            "stored": self.stored(audit),
            "entries": dict(kernel.entries),
            "occupancy": kernel.occupancy,
            "policy": [
                *(rows.tolist() for _, rows in policy.pieces),
                *(each.vectors.tolist() for _, each in policy.classes),
                *((e.rules.tolist(), e.interfaces) for e in policy.hooks),
            ],
            "hooks": dict(kernel.hooks),
            "counted": sorted(kernel.counted),
            "etag": self.firewall.etag(),
            "rules": [each.fields() for each in self.firewall.export()[0]],
            "interfaces": self.firewall.interfaces(),
            "fills": self.firewall.fills(),
        }

    def rule(self, rule_id: str = "r", **fields: Any) -> Rule:
        return rule_from_fields(fields, rule_id, self.now)

    def add(self, rule_id: str = "r", **fields: Any) -> None:
        self.firewall.add(self.rule(rule_id, **fields))

    def hit(self, prefix: str, packets: int, scope: int = 0) -> None:
        """Packets of 100 bytes meet the entry of a prefix."""
        version, address, length = parse_prefix(prefix)
        key = Key(version, scope, length, address)
        assert key in self.kernel.entries
        self.kernel.entry_hits[key] = self.kernel.entry_hits.get(key, NO_HITS).plus(
            Hits(packets, 100 * packets, self.now)
        )

    def hit_policy(self, rule_id: str, packets: int) -> None:
        handle = self.handle(rule_id)
        policy = self.kernel.policy
        assert policy is not None
        rows = [each for image in policy.hooks for each in image.rules if each["handle"] == handle]
        slot = int(rows[0]["slot"])
        self.kernel.slot_hits[slot] = self.kernel.slot_hits.get(slot, NO_HITS).plus(
            Hits(packets, 100 * packets, self.now)
        )

    def handle(self, rule_id: str) -> int:
        record = self.firewall._store.by_id(rule_id)
        assert record is not None
        return record.handle

    def packets(self, rule_id: str) -> int:
        return self.firewall.rule(rule_id).packets

    def ids(self) -> list[str]:
        return [each.id for each in self.firewall.export()[0]]

    def handles_in_kernel(self) -> set[int]:
        policy = self.kernel.policy
        assert policy is not None
        in_policy = {int(each["handle"]) for image in policy.hooks for each in image.rules if each["handle"]}
        return in_policy | {entry.handle for entry in self.kernel.entries.values()}


def wait_for(condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Raises AssertionError where it does not come true."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.005)
