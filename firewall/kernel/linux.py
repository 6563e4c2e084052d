"""The kernel as the enforcer sees it: programs, maps and hooks of this host behind one surface.

Owns which program set is in use and replacing it by a larger or newer one while packets are judged. The
writing of maps is datapath.py's, netlink is hooks.py's.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firewall.datapath import (
    Answer,
    Attached,
    Change,
    Connection,
    Entries,
    Expected,
    Happened,
    Image,
    Key,
    LeftOver,
    Link,
    MapFill,
    Question,
)
from firewall.errors import TableFull
from firewall.hits import Hits, InterfaceHits
from firewall.kernel import bpf, bpffs, clock, opening, owner, program_set
from firewall.kernel.bpf import program_info
from firewall.kernel.connections import Connections, route_to
from firewall.kernel.datapath import KernelDatapath, possible_cpus
from firewall.kernel.events import LinkEvents
from firewall.kernel.hooks import NetlinkHooks
from firewall.kernel.left_over import left_over, live_slots
from firewall.kernel.loader import bcc_version
from firewall.kernel.map_audit import MapAudit
from firewall.kernel.maps import KEPT, NAMES, OTHER_WAYS, REPORT_WAYS, PinnedMaps
from firewall.kernel.named_maps import carried
from firewall.kernel.offload import OffloadDevice, check_change, edits_of
from firewall.kernel.policy_maps import pack, summary_words, write_policy
from firewall.kernel.program_set import ProgramSet
from firewall.kernel.questions import Questions
from firewall.kernel.reports import KernelReports
from firewall.kernel.source import TC_PROGRAMS, XDP_PROGRAMS, Capacities
from firewall.layout import C
from firewall.named_sets import Counters, CountingSet
from firewall.policy import Policy

_INGRESS = C["HOOK_INGRESS"]
_LARGE = 65536  # elements: tables of fewer grow by four, those of more by a quarter more than is asked for


class LinuxKernel:
    """Kernel of firewall/datapath.py. Not thread-safe: one writer."""

    def __init__(
        self,
        pin_root: Path,
        max_addresses: int,
        max_rules: int,
        options: tuple[int, int],
        cache: Path | None = None,
    ) -> None:
        """`options`: OPTION_* by hook, what decides where no rule does; `cache`: where compiled programs are kept."""
        self._pin_root = pin_root
        self._max_addresses = max_addresses
        self._max_rules = max_rules
        self._options = options
        self._cache = cache
        self._hooks = NetlinkHooks(self._open_program)
        self._events = LinkEvents()
        self._audit = MapAudit()
        self._connections = Connections()
        self._offloaded: dict[int, OffloadDevice] = {}
        self._attached: dict[tuple[int, int], tuple[Link, str]] = {}
        self._policy: Policy | None = None
        self._fitting: Policy | None = None  # one that there is room for
        self._is_promoted = True
        self._questions: Questions | None = None
        self._superseded: PinnedMaps | None = None
        self._owner = 0
        self._own_maps: set[int] = set()
        self._programs: Mapping[str, int] = {}  # of the set in use, so that they are known by descriptor
        self.bcc = bcc_version()

    # -- the program set

    def start(self, identity: int) -> dict[int, int]:
        bpf.allow_locked_memory()
        bpffs.ensure(self._pin_root)
        self._lock = bpffs.PinLock(self._pin_root)
        self._owner = identity
        self._own_maps |= program_set.pinned_map_ids(self._pin_root)
        pinned = program_set.pinned_capacities(self._pin_root, identity) or self._recover(identity)
        if pinned is not None and pinned.rules == self._max_rules:
            adopted = program_set.adopt(self._pin_root, pinned)
            if adopted is not None:
                self._use(adopted, pinned)
            else:
                self._build_over_pinned(pinned)
            self._set.maps.point_at_addresses()
            return live_slots(self._datapath)
        if pinned is not None:
            # Laid out in the same way: what they count until the hooks have other programs is not lost.
            self._superseded = PinnedMaps(self._pin_root, KEPT)
        self._build(Capacities(self._max_rules), {})
        return {}

    def _recover(self, identity: int) -> Capacities | None:
        """From programs of ours that hooks still run, where the pins are gone."""
        for link in self.links():
            for hook in range(C["HOOK_COUNT"]):
                present = self.attached(link, hook)
                if present is not None and present.is_ours:
                    self._recover_maps(present.program_id)
                    pinned = program_set.pinned_capacities(self._pin_root, identity)
                    if pinned is not None:
                        return pinned
        return None

    def _recover_maps(self, program_id: int) -> None:
        program = self._open_program(program_id)
        if program is not None:
            try:
                program_set.recover(self._pin_root, program)
            finally:
                os.close(program)

    def _build_over_pinned(self, capacities: Capacities) -> None:
        """Other programs, the same maps."""
        with ExitStack() as descriptors:
            keep = {
                name: bpf.get(self._pin_root / "maps" / name)
                for name in program_set.kept_maps(self._pin_root)
            }
            for fd in keep.values():
                descriptors.callback(os.close, fd)
            self._build(capacities, keep)

    def _use(self, chosen: ProgramSet, capacities: Capacities) -> None:
        self._forget_questions()
        self._set, self._programs = chosen, chosen.programs
        self._capacities, self._fitting = capacities, None
        self._datapath = KernelDatapath(chosen.maps, self._options)
        self._datapath.pinned_below(self._pins())
        self._own_maps |= {each.info.id for each in chosen.maps.maps.values()}

    def _build(self, capacities: Capacities, keep: Mapping[str, int]) -> None:
        built = program_set.build(self._pin_root, capacities, keep, self._owner, self._cache)
        self.bcc = built.bcc or self.bcc
        self._is_promoted = False
        self._use(built, capacities)

    def reserve(self, entries: Mapping[int, int], policy: Policy) -> None:
        if policy is not self._fitting:
            _check_intervals(policy.interval_count)
            self._make_room(policy)
            self._fitting = policy
            self._datapath.get_ready(policy)
        self._datapath.reserve(entries, self._pins())

    def _make_room(self, policy: Policy) -> None:
        present = self._capacities
        wanted_sizes = replace(
            present,
            vectors=_grown(present.vectors, policy.vector_count),
            lines=_grown(present.lines, policy.line_count(summary_words(self._set.maps))),
            intervals4=_grown(present.intervals4, policy.intervals_of(4)),
            intervals6=_grown(present.intervals6, policy.intervals_of(6)),
            blocks=_grown(present.blocks, policy.block_count),
            named=_grown(present.named, policy.named.naming_count),
            prefixes4=_grown(present.prefixes4, policy.named.sizes[4]),
            prefixes6=_grown(present.prefixes6, policy.named.sizes[6]),
            entries=_grown(present.entries, policy.named.taken),
        )
        if wanted_sizes != present:
            self._grow_policy(wanted_sizes)
            self._audit.wrote(self._set.maps, policy=True)

    def _pins(self) -> Path:
        return self._pin_root if self._is_promoted else self._pin_root / "next"

    def _grow_policy(self, wanted: Capacities) -> None:
        """Builds programs with larger policy tables beside, fills those, puts the programs on every hook."""
        self._datapath.settle()
        self._datapath.free_rows()  # whoever is next takes them for free
        old, present, old_datapath = self._set, self._capacities, self._datapath
        renewed = {name for name in NAMES if name.startswith("policy_")} - {"policy_counters"}
        renewed.update((*REPORT_WAYS, *OTHER_WAYS))
        if wanted.entries != present.entries:
            renewed.add("entry_counters")
        kept = {name: old.maps[name].fd for name in NAMES if name not in renewed}
        was_promoted = self._is_promoted
        self._build(wanted, kept)
        self._datapath.take_over(old_datapath)
        try:
            if self._policy is not None:
                packed = pack(self._set.maps, self._policy)
                write_policy(self._set.maps, self._datapath.epoch & 1, packed, self._options)
            counted = carried(old.maps, self._set.maps) if "entry_counters" in renewed else None
            self._reattach()
            # A packet that a hook gave to the old programs has read the epoch before a change moves it: their
            # policy is not written any more.
            self._datapath.wait_for_packets()
            if counted is not None:
                carried(old.maps, self._set.maps, counted)
        except BaseException:
            program_set.discard(self._pin_root / "next")
            self._forget_questions()
            self._set.close()
            self._set, self._capacities, self._datapath = old, present, old_datapath
            self._programs = old.programs
            self._is_promoted = was_promoted
            self._reattach()
            raise
        if self._attached or was_promoted:
            self.release()
        old_datapath.close()
        old.close()

    def _reattach(self) -> None:
        present = {link.ifindex for link in self.links()}
        self._attached = {place: each for place, each in self._attached.items() if place[0] in present}
        for (_, hook), (link, mode) in list(self._attached.items()):
            self._put(link, hook, mode)

    def release(self) -> LeftOver:
        left = LeftOver()
        if self._superseded is not None:
            left = left_over(self._superseded)
            self._superseded.close()
            self._superseded = None
        if not self._is_promoted:
            program_set.promote(self._pin_root)
            self._is_promoted = True
            self._datapath.pinned_below(self._pin_root)
        return left

    def report_source(self) -> KernelReports:
        return KernelReports(self._set.maps, possible_cpus())

    def stop(self, keep: bool = False) -> None:
        """Unpins the maps and programs, unless they are to `keep` judging until the next start."""
        self._forget_questions()
        self._datapath.close()
        self._set.close()
        if keep:
            for device in self._offloaded.values():
                device.let_go()
        else:
            program_set.discard(self._pin_root)
        self._lock.close()
        self._hooks.close()
        self._events.close()

    # -- content

    def reconcile(self, image: Image) -> None:
        with self._noting_writes():
            self._datapath.reconcile(image)
        self._policy = image.policy

    def set_options(self, options: tuple[int, int]) -> None:
        self._options = self._datapath.options = options
        for device in self._offloaded.values():
            device.options = options[_INGRESS]

    def apply(self, change: Change) -> dict[int, Hits]:
        edits = edits_of(change) if self._offloaded else []
        check_change(self._offloaded.values(), edits, change)
        with self._noting_writes(change):
            hits = self._datapath.apply(change)
        self._policy = change.policy or self._policy
        for device in self._offloaded.values():
            device.apply(edits)
        return hits

    def settle(self) -> None:
        if not self._datapath.is_settled:
            with self._noting_writes():
                self._datapath.settle()
        self._datapath.tidy()

    def survey(self) -> bool:
        return self._datapath.survey()

    def forget_survey(self) -> None:
        self._datapath.forget_survey()

    def doom(self, entries: Sequence[Entries]) -> None:
        with self._noting_entries():
            self._datapath.doom(entries)

    def are_doomed(self) -> bool:
        return self._datapath.are_doomed()

    def fall(self) -> None:
        with self._noting_entries():
            self._datapath.fall()

    def spare(self, entries: Sequence[Entries]) -> None:
        with self._noting_entries():
            self._datapath.spare(entries)

    def forget_doomed(self) -> None:
        self._datapath.forget_doomed()

    def tidy(self) -> bool:
        if not self._datapath.settles_at_once:
            return False
        if self._datapath.is_settled:
            return self._datapath.tidy()
        with self._noting_entries():
            return self._datapath.tidy()

    @contextmanager
    def _noting_writes(self, change: Change | None = None) -> Iterator[None]:
        """For the audit; without a change, or where one fails, anything may be written."""
        policy = True
        try:
            yield
            policy = change is None or change.policy is not None
        finally:
            self._audit.wrote(self._set.maps, policy)

    @contextmanager
    def _noting_entries(self) -> Iterator[None]:
        """For the audit: the policy is as it was."""
        try:
            yield
        finally:
            self._audit.wrote(self._set.maps, False)

    def address_hits(self, keys: Sequence[Key]) -> list[Hits]:
        hits = self._datapath.address_hits(keys)
        for device in self._offloaded.values():
            hits = [found.plus(device.address_hits(key)) for found, key in zip(hits, keys, strict=True)]
        return hits

    def hits_of(self, entries: Sequence[Entries]) -> dict[int, Hits]:
        return self._datapath.hits_of(entries)

    def all_address_hits(self) -> dict[int, Hits]:
        return self._datapath.all_address_hits()

    def address_rules_hit_since(self, moment: float) -> npt.NDArray[np.uint32]:
        handles = self._datapath.address_rules_hit_since(moment)
        held = [device.handles_hit() for device in self._offloaded.values()]
        return np.concatenate([handles, *held])

    def policy_hits(self, slots: Sequence[int]) -> list[Hits]:
        return self._datapath.policy_hits(slots)

    def hits_of_entries(self, counters: Counters) -> list[Hits]:
        return self._datapath.hits_of_entries(counters)

    def counting_sets(self) -> Mapping[int, CountingSet]:
        return self._datapath.counting_sets()

    def count_interface(self, ifindex: int) -> None:
        self._datapath.interfaces.add(ifindex)

    def uncount_interface(self, ifindex: int) -> list[InterfaceHits]:
        return self._datapath.interfaces.remove(ifindex)

    def interface_hits(self) -> Mapping[int, list[InterfaceHits]]:
        hits = dict(self._datapath.interfaces.hits())
        for ifindex, device in self._offloaded.items():
            hits[ifindex] = hits.get(ifindex, []) + device.interface_hits()
        return hits

    def fills(self, policy_rules: int, addresses: Mapping[int, int]) -> list[MapFill]:
        limit = self._max_addresses
        return [
            *(MapFill(f"address{v}", addresses[v], limit, "bpf.max_addresses") for v in (4, 6)),
            MapFill("policy_rules", policy_rules, self._max_rules, "bpf.max_rules"),
            *(fill for device in self._offloaded.values() for fill in device.fills()),
        ]

    def judge(self, question: Question) -> Answer:
        if self._questions is None:
            self._questions = Questions(self._pins(), self._set.maps, self._capacities, self._cache)
        return self._questions.judge(question, self._datapath)

    def _forget_questions(self) -> None:
        """They go with the maps that they look into."""
        if self._questions is not None:
            self._questions.close()
            self._questions = None

    # -- whom the host talks to

    def connections(self) -> list[Connection]:
        return self._connections.all()

    def ssh_sessions(self) -> list[Connection]:
        return self._connections.ssh_sessions()

    def route_to(self, version: int, address: int) -> int | None:
        return route_to(version, address)

    # -- what others do

    def wait(self, timeout_s: float) -> Happened:
        return self._events.wait(timeout_s)

    def wake(self) -> None:
        self._events.wake()

    def boot_id(self) -> str:
        return clock.boot_id()

    def missing_pins(self) -> list[str]:
        return program_set.missing_pins(self._pins(), self._set)

    def pin_again(self) -> None:
        bpffs.ensure(self._pin_root)
        if not self._lock.is_of(self._pin_root):
            self._lock.close()
            self._lock = bpffs.PinLock(self._pin_root)
        program_set.pin_again(self._pins(), self._set)

    def audit(self, expected: Expected) -> list[str]:
        self.tidy()
        return self._audit.look(self._set.maps, expected)

    def restore(self) -> None:
        self._audit.restore(self._set.maps)
        self._set.maps.point_at_addresses()

    # -- hooks

    def links(self) -> list[Link]:
        return self._hooks.links()

    def attached(self, link: Link, hook: int) -> Attached | None:
        return self._hooks.ingress(link.ifindex) if hook == _INGRESS else self._hooks.egress(link.ifindex)

    def attach(self, link: Link, hook: int, mode: str, force: bool = False) -> None:
        self._put(link, hook, mode, force)
        self._attached[link.ifindex, hook] = (link, mode)

    def give_back(self, link: Link) -> None:
        self._hooks.give_back(link)

    def forget_displaced(self) -> None:
        self._hooks.forget_displaced()

    def _put(self, link: Link, hook: int, mode: str, force: bool = False) -> None:
        name = _program_name(link, hook)
        if hook != _INGRESS:
            self._hooks.attach_egress(link, self._set.programs[name], name)
        elif mode != "offload":
            self._hooks.attach_ingress(link, self._set.programs[name], mode, force)
        elif link.ifindex not in self._offloaded:
            self._offload(link, force)

    def _offload(self, link: Link, force: bool) -> None:
        device = OffloadDevice(
            self._pin_root, link, self._options[_INGRESS], self._datapath.ingress_entries()
        )
        try:
            device.check((), self._policy)
            self._hooks.attach_ingress(link, device.program, "offload", force)
        except BaseException:
            device.close()
            raise
        self._offloaded[link.ifindex] = device

    def detach(self, link: Link, hook: int) -> None:
        if hook == _INGRESS:
            self._hooks.detach_ingress(link)
            device = self._offloaded.pop(link.ifindex, None)
            if device is not None:
                device.close()
        else:
            self._hooks.detach_egress(link)
        self._attached.pop((link.ifindex, hook), None)

    def detach_from_others(self, ifindexes: Collection[int]) -> list[tuple[Link, int]]:
        freed = []
        for link in self.links():
            for hook in range(C["HOOK_COUNT"]):
                if link.ifindex not in ifindexes and self._runs_with_our_maps(self.attached(link, hook)):
                    self.detach(link, hook)
                    freed.append((link, hook))
        return freed

    def _runs_with_our_maps(self, present: Attached | None) -> bool:
        """Not a program of another ebpf-fw, with another directory of pins."""
        if present is None or not present.is_ours:
            return False
        fd = self._open_program(present.program_id)
        if fd is None:
            return False
        try:
            return not self._own_maps.isdisjoint(program_info(fd).map_ids)
        finally:
            os.close(fd)

    def _open_program(self, program_id: int) -> int | None:
        return opening.open_program(program_id, self._held_programs(), [self._pin_root])

    def _held_programs(self) -> list[int]:
        return [*self._programs.values(), *(device.program for device in self._offloaded.values())]

    def before_ours(self, link: Link) -> list[str]:
        return self._hooks.before_ours(link.ifindex)

    def describe(self, program_id: int) -> str:
        return owner.describe(program_id)

    def expected_program(self, link: Link, hook: int) -> int:
        if hook == _INGRESS and link.ifindex in self._offloaded:
            return program_info(self._offloaded[link.ifindex].program).id
        return program_info(self._set.programs[_program_name(link, hook)]).id


def _program_name(link: Link, hook: int) -> str:
    return (XDP_PROGRAMS if hook == _INGRESS else TC_PROGRAMS)[link.has_ethernet]


def _check_intervals(wanted: int) -> None:
    """Raises TableFull beyond what policy_index4 can name (bpf/layout.h)."""
    most = (1 << 32 - C["INDEX_COUNT_BITS"]) // C["GENERATION_COUNT"]
    if wanted > most:
        raise TableFull(
            f"policy_ranges holds at most {most} intervals of addresses and this change makes {wanted}",
            "name fewer addresses in rules that ask for more than addresses",
            table="policy_ranges",
            capacity=most,
            wanted=wanted,
            setting="bpf.max_rules",
        )


def _grown(have: int, wanted: int) -> int:
    """A capacity. Small tables grow by much, since each growth compiles programs; large ones by little, since they are
    most of the memory."""
    while have < wanted and have < _LARGE:
        have *= 4
    return have if have >= wanted else wanted + wanted // 4
