"""A kernel in memory: what the enforcer asks for is kept in dictionaries, and can be made to fail."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from api.wiring import build
from firewall.address_index import decoded
from firewall.datapath import (
    Answer,
    Attached,
    Change,
    Connection,
    Entries,
    Entry,
    Expected,
    Happened,
    Image,
    Key,
    LeftOver,
    Link,
    MapFill,
    Question,
    Read,
)
from firewall.enforcer import Enforcer
from firewall.errors import Conflict, KernelRefused, kernel_refused
from firewall.hits import NO_HITS, Hits, InterfaceHits
from firewall.layout import REASONS, VERDICTS
from firewall.named_sets import Counters, CountingSet
from firewall.policy import Policy
from firewall.report import Limit, NotSent
from firewall.settings import Settings
from tests import oracle
from tests.unit.image import policy_rule

LINKS = (
    Link(1, "lo", True, True),
    Link(2, "eth0", True, True),
    Link(3, "eth1", True, True),
    Link(4, "wg0", False, True),
)


class MemoryReports:
    """What came over the wire is what a test puts into `records`, one report each."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.missing = [NotSent(0, 0), NotSent(0, 0)]
        self.limits: Sequence[Limit] = ()
        self.listening = self.snap_length = 0
        self._there_is = threading.Event()

    def limit(self, limits: Sequence[Limit]) -> None:
        self.limits = tuple(limits)

    def listen(self, listening: int, snap_length: int) -> None:
        self.listening, self.snap_length = listening, snap_length

    def wait(self, timeout_s: float) -> None:
        self._there_is.wait(timeout_s)
        self._there_is.clear()

    def wake(self) -> None:
        self._there_is.set()

    def put(self, *records: bytes) -> None:
        self.records.extend(records)
        self.wake()

    def read(self, most: int) -> list[bytes]:
        found, self.records = self.records[:most], self.records[most:]
        return found

    def not_sent(self) -> list[NotSent]:
        return list(self.missing)

    def close(self) -> None:
        self.listen(0, 0)


class MemoryKernel:
    """`fail_next`: an errno that the next apply() or attach() answers with. `entries`, `policy`: what packets meet.
    `live`: the TCP connections. `routes`: index of an interface by (version, address); others leave by eth0."""

    bcc: str | None = "0.0-memory"

    def __init__(self, max_addresses: int = 1 << 20, max_rules: int = 4096) -> None:
        self.entries: dict[Key, Entry] = {}
        self.doomed: dict[Key, Entry] = {}
        self.fallen: dict[Key, Entry] = {}
        self.falls = self.policies = 0
        self.policy: Policy | None = None
        self.hits: dict[int, Hits] = {}
        self.hooks: dict[tuple[str, int], Attached] = {}
        self.no_native: set[str] = set()
        self.host_links = list(LINKS)
        self.fail_next = 0
        self.applied = 0
        self.options = (0, 0)
        self.displaced: Attached | None = None
        self.first_at_egress: dict[str, list[str]] = {}
        self.lost_pins: list[str] = []
        self.edited: list[str] = []
        self.boot = "first"
        self.live: list[Connection] = []
        self.routes: dict[tuple[int, int], int | None] = {(4, 0x7F000001): 1, (6, 1): 1}
        self.reports = MemoryReports()
        self._wake = threading.Event()
        self._max_addresses, self._max_rules = max_addresses, max_rules

    def start(self, owner: int) -> dict[int, int]:
        return {}

    def counting_sets(self) -> Mapping[int, CountingSet]:
        return {}

    def hits_of_entries(self, counters: Counters) -> list[Hits]:
        return [NO_HITS] * len(counters)

    def report_source(self) -> MemoryReports:
        return self.reports

    def stop(self, keep: bool = False) -> None:
        if not keep:
            self.entries.clear()

    def release(self) -> LeftOver:
        return LeftOver()

    def tidy(self) -> bool:
        self.settle()
        return False

    def settle(self) -> None:
        pass

    def reserve(self, entries: Mapping[int, int], policy: Policy) -> None:
        pass

    def reconcile(self, image: Image) -> None:
        self.entries = {key: entry for each in image.entries.values() for key, entry in decoded(each)}
        self.policy = image.policy

    def _fail(self, action: str) -> None:
        number, self.fail_next = self.fail_next, 0
        if number:
            raise kernel_refused(action, number)

    def apply(self, change: Change) -> dict[int, Hits]:
        self._fail("writing map address4")
        self.applied += 1
        gone: dict[int, Hits] = {}
        touched = [key for each in change.gone for key, _ in decoded(each)]
        touched += [key for before, _ in change.changed for key, _ in decoded(before)]
        for key in (*touched, *(edit.key for edit in change.edits)):
            if key in self.fallen:
                self.entries[key] = self.fallen.pop(key)
            self.doomed.pop(key, None)
        for key, old, new in change.edits:
            assert self.entries.get(key) == old, (
                f"{key}: {self.entries.get(key)} in the kernel, {old} expected"
            )
            if new is None:
                del self.entries[key]
            else:
                self.entries[key] = new
            if old is not None and (new is None or new.handle != old.handle):
                gone[old.handle] = self.hits.pop(old.handle, NO_HITS)
        for each in change.come:
            self.entries |= dict(decoded(each))
        for each in change.gone:
            for key, entry in decoded(each):
                assert self.entries.pop(key) == entry
                gone[entry.handle] = self.hits.pop(entry.handle, NO_HITS)
        for before, after in change.changed:
            for (key, old), (same, new) in zip(decoded(before), decoded(after), strict=True):
                assert key == same and self.entries[key] == old
                self.entries[key] = new
                if old.handle != new.handle and old.handle in self.hits:
                    gone[old.handle] = self.hits.pop(old.handle)
        self.policy = change.policy or self.policy
        self.policies += change.policy is not None
        return gone

    def doom(self, entries: Sequence[Entries]) -> None:
        for each in entries:
            self.doomed |= {key: entry for key, entry in decoded(each) if self.entries.get(key) == entry}

    def are_doomed(self) -> bool:
        return True

    def fall(self) -> None:
        """Those that nobody wrote otherwise meanwhile."""
        self.falls += 1
        for key, entry in self.doomed.items():
            if self.entries.get(key) == entry:
                self.fallen[key] = self.entries.pop(key)

    def spare(self, entries: Sequence[Entries]) -> None:
        for each in entries:
            for key, entry in decoded(each):
                if self.doomed.pop(key, None) is not None:
                    self.fallen.pop(key, None)
                    self.entries[key] = entry

    def forget_doomed(self) -> None:
        self.doomed.clear()

    def survey(self) -> bool:
        return True

    def forget_survey(self) -> None: ...

    def set_options(self, options: tuple[int, int]) -> None:
        self.options = options

    def address_hits(self, keys: Sequence[Key]) -> list[Hits]:
        return [
            self.hits.get(self.entries[key].handle, NO_HITS) if key in self.entries else NO_HITS
            for key in keys
        ]

    def hits_of(self, entries: Sequence[Entries]) -> dict[int, Hits]:
        handles = {handle for each in entries for handle in each.handles.tolist()}
        return {handle: self.hits[handle] for handle in handles if handle in self.hits}

    def all_address_hits(self) -> dict[int, Hits]:
        return dict(self.hits)

    def address_rules_hit_since(self, moment: float) -> npt.NDArray[np.uint32]:
        return np.array([handle for handle, hits in self.hits.items() if hits.last_hit >= moment], np.uint32)

    def policy_hits(self, slots: Sequence[int]) -> list[Hits]:
        return [NO_HITS for _ in slots]

    def count_interface(self, ifindex: int) -> None:
        pass

    def uncount_interface(self, ifindex: int) -> list[InterfaceHits]:
        return []

    def interface_hits(self) -> Mapping[int, list[InterfaceHits]]:
        return {2: [InterfaceHits(0, 1, 1, 7, 700), InterfaceHits(0, 0, 0, 3, 180)]}

    def fills(self, policy_rules: int, addresses: Mapping[int, int]) -> list[MapFill]:
        return [
            *(MapFill(f"address{v}", addresses[v], self._max_addresses, "bpf.max_addresses") for v in (4, 6)),
            MapFill("policy_rules", policy_rules, self._max_rules, "bpf.max_rules"),
        ]

    def links(self) -> list[Link]:
        return list(self.host_links)

    def attached(self, link: Link, hook: int) -> Attached | None:
        return self.hooks.get((link.name, hook))

    def attach(self, link: Link, hook: int, mode: str, force: bool = False) -> None:
        self._fail(f"attaching to {link.name}")
        present = self.attached(link, hook)
        if present is not None and not present.is_ours and force:
            self.displaced = present
        elif present is not None and not present.is_ours:
            raise Conflict(f"another XDP program is on {link.name}", "detach it", code="program_conflict")
        if mode == "native" and link.name in self.no_native:
            raise kernel_refused(f"attaching in native mode to {link.name}", errno.EOPNOTSUPP)
        if mode == "offload":
            raise KernelRefused(f"{link.name} cannot offload", code="offload_unavailable")
        self.hooks[link.name, hook] = Attached(40 + hook, "fw_memory", mode, True)

    def give_back(self, link: Link) -> None:
        if self.displaced is not None:
            self.hooks[link.name, 0], self.displaced = self.displaced, None

    def forget_displaced(self) -> None:
        self.displaced = None

    def detach(self, link: Link, hook: int) -> None:
        present = self.attached(link, hook)
        if present is not None and present.is_ours:
            del self.hooks[link.name, hook]

    def before_ours(self, link: Link) -> list[str]:
        return self.first_at_egress.get(link.name, [])

    def describe(self, program_id: int) -> str:
        return f"program {program_id}"

    def connections(self) -> list[Connection]:
        return list(self.live)

    def ssh_sessions(self) -> list[Connection]:
        return [each for each in self.live if each.is_ssh]

    def route_to(self, version: int, address: int) -> int | None:
        return self.routes.get((version, address), 2)

    def judge(self, question: Question) -> Answer:
        """As a slow reader of the image has it: no options, no drops of fragments."""
        packet = oracle.parse(question.frame, "ethernet" if question.has_ethernet else "ip")
        if packet.version is None:
            is_dropped = packet.reason != "not_ip"
            return Answer(
                int(is_dropped),
                REASONS.index(packet.reason),
                None,
                Read(0, 0, 0, 0, False, False, None, None, None),
            )
        flags = packet.tcp_flags
        read = Read(
            packet.version,
            int(packet.source or 0),
            int(packet.destination or 0),
            packet.protocol or 0,
            packet.fragment,
            packet.fragment and packet.ports is None and packet.icmp is None,
            packet.ports,
            None if flags is None else sum(oracle.TCP_FLAGS[name] for name in flags),
            packet.icmp,
        )
        if packet.reason != "default":
            return Answer(VERDICTS.index("drop"), REASONS.index(packet.reason), None, read)
        found = [(*entry, 0) for key, entry in self.entries.items() if _covers(key, question.hook, read)]
        if self.policy is not None:
            rule = policy_rule(self.policy, question.hook, packet, question.ifindex)
            found += [(rule[0], rule[2], 1)] if rule else []
        if not found:
            return Answer(VERDICTS.index("pass"), REASONS.index("default"), None, read)
        rank, handle, _ = min(found)
        return Answer(VERDICTS.index("pass" if rank & 1 else "drop"), REASONS.index("rule"), handle, read)

    def wait(self, timeout_s: float) -> Happened:
        """The host tells of everything all the time."""
        self._wake.wait(min(timeout_s, 0.05))
        self._wake.clear()
        return Happened(everything=True)

    def wake(self) -> None:
        self._wake.set()

    def boot_id(self) -> str:
        return self.boot

    def missing_pins(self) -> list[str]:
        return list(self.lost_pins)

    def pin_again(self) -> None:
        self.lost_pins.clear()

    def audit(self, expected: Expected) -> list[str]:
        return list(self.edited)

    def restore(self) -> None:
        self.edited.clear()

    def detach_from_others(self, ifindexes: Collection[int]) -> list[tuple[Link, int]]:
        freed = [
            (link, hook)
            for link in self.links()
            for hook in (0, 1)
            if link.ifindex not in ifindexes and (each := self.attached(link, hook)) and each.is_ours
        ]
        for link, hook in freed:
            self.detach(link, hook)
        return freed

    def expected_program(self, link: Link, hook: int) -> int:
        return 40 + hook


def _covers(key: Key, hook: int, read: Read) -> bool:
    bits = 32 if key.version == 4 else 128
    address = read.destination if key.scope & 1 else read.source
    return (
        key.version == read.version
        and key.scope >> 1 == hook
        and (address ^ key.address) >> (bits - key.length) == 0
    )


def memory_enforcer(
    tmp_path: Path, settings: Mapping[str, object] | None = None, clock: Callable[[], float] = time.time
) -> tuple[Enforcer, MemoryKernel]:
    """A started enforcer over a real store below tmp_path; `settings` are sections of the config."""
    content = {"state": {"directory": str(tmp_path / "state")}, **(settings or {})}
    parsed = Settings.model_validate(content)
    kernel = MemoryKernel(parsed.bpf.max_addresses, parsed.bpf.max_rules)
    enforcer = build(parsed, lambda _: kernel, clock)
    enforcer.start()
    return enforcer, kernel
