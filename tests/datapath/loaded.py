"""The loaded programs and an enforcer over them: rules in, then a frame in, verdict and reason out.

Owns a private pin root and state directory. It attaches nothing: frames reach the programs by
BPF_PROG_TEST_RUN alone, so no interface of the machine meets them. Test runs arrive by the loopback device's
number; `interfaces` says which names the rules' compiler takes it for.
"""

from __future__ import annotations

import errno
import shutil
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from api.wiring import build, linux_kernel
from firewall.datapath import Kernel
from firewall.kernel import bpf, program_set
from firewall.kernel.datapath import possible_cpus
from firewall.kernel.linux import LinuxKernel
from firewall.kernel.reports import KernelReports
from firewall.kernel.source import TC_PROGRAMS, XDP_PROGRAMS
from firewall.layout import HOOKS, REASONS, VERDICTS, C
from firewall.rule import Rule, rule_from_fields
from firewall.settings import Settings
from firewall.view import BatchOutcome, RuleQuery

# What a test run says that a packet arrived by, and an interface that none does.
HERE, ELSEWHERE = 1, 4_000_000
# Names longer than the kernel takes: the config protects them, so rules may name them, and none can be there.
INTERFACES = {"pretended-interface-0": HERE, "pretended-interface-1": ELSEWHERE}
PROGRAMS = {"ingress": XDP_PROGRAMS, "egress": TC_PROGRAMS}
XDP_DROP, XDP_PASS, TC_ACT_SHOT, TC_ACT_UNSPEC = 1, 2, 2, 0xFFFFFFFF
VERDICT_OF = {
    "ingress": {XDP_PASS: "pass", XDP_DROP: "drop"},
    "egress": {TC_ACT_UNSPEC: "pass", TC_ACT_SHOT: "drop"},
}
# Programs that another worker or run compiled are loaded again: by what they are made of, so never stale ones.
CACHE = Path(__file__).resolve().parents[2] / "build" / "programs"
SHORTEST_FRAME = 14  # of a test run, whatever the link
IP_HEADER = {0x0800: 20, 0x86DD: 40}


class Judged(NamedTuple):
    """What a program returned, and the reason that it counted."""

    verdict: str
    reason: str


def runnable(frame: bytes, hook: str) -> bytes:
    """The frame, or on egress the same behind a VLAN tag where test runs of an skb refuse it as it is.

    They refuse (Linux 6.18) frames whose type says IP but which are shorter than an IP header. The tag hides
    the type from them and changes nothing for the filter, which looks through it.
    """
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    if hook == "egress" and len(frame) - 14 < IP_HEADER.get(ethertype, 0):
        return frame[:12] + b"\x81\x00\x00\x01" + frame[12:]
    return frame


def to_rule(fields: Mapping[str, Any]) -> Rule:
    return rule_from_fields(fields, fields["id"], 0.0)


class Loaded:
    """`enforcer` and `kernel` are replaced by restart(). Close it, or its pins and descriptors stay."""

    def __init__(self, directory: Path, **sections: Mapping[str, object]) -> None:
        """`directory`/bpf is on a bpf file system; `sections` are those of the config."""
        self._directory = directory
        self._sections = sections
        self._cpus = possible_cpus()
        self._start()

    # -- life

    def _start(self) -> None:
        content: dict[str, Any] = {
            "state": {"directory": str(self._directory / "state"), "cache_directory": str(CACHE)},
            "interfaces": [{"name": "pretended-interface-*"}],
            **self._sections,
        }
        content["bpf"] = {"pin_root": str(self._directory / "bpf" / "root"), **content.get("bpf", {})}
        self.enforcer = build(Settings.model_validate(content), self._kernel_of)
        self.interfaces = dict(INTERFACES)
        # The enforcer asks what is protected; the answer is what this test says, and nothing is attached.
        self.enforcer._interfaces.protected = lambda: self.interfaces  # type: ignore[method-assign]
        self.enforcer._stopping.set()  # nothing happens but by the test: no watching thread
        self.enforcer.start()
        self.enforcer._apply_interfaces(self.interfaces)
        self.kernel.count_interface(HERE)
        self._counted = self._read_counters()

    def _kernel_of(self, settings: Settings) -> Kernel:
        made = linux_kernel(settings)
        assert isinstance(made, LinuxKernel)
        self.kernel = made
        return made

    def crash(self) -> None:
        """Lets go of everything as the end of the process would: nothing is saved, unpinned or settled."""
        self._let_go_of_reports()
        self.kernel._datapath.close()
        self.kernel._set.close()
        self.kernel._hooks.close()
        self.kernel._events.close()
        self.kernel._lock.close()
        self.enforcer._store.close()

    def _let_go_of_reports(self) -> None:
        """The kernel goes on reporting to nobody."""
        reporting = self.enforcer.reporting
        source, reporting._source = reporting._source, None
        assert isinstance(source, KernelReports)
        source.wake()
        if reporting._thread is not None:
            reporting._thread.join()
        source.let_go()

    def restart(self, **sections: Mapping[str, object]) -> None:
        """Crashes and starts again on the same state and pins, with these sections of the config changed."""
        self.crash()
        self._sections = {**self._sections, **sections}
        self._start()

    def renew(self) -> None:
        """Starts anew, without state and pins."""
        self.crash()
        shutil.rmtree(self._directory / "state")
        program_set.discard(self._directory / "bpf" / "root")
        self._sections = {}
        self._start()

    def configure(self, **filter_settings: object) -> None:
        """Restarts with just these settings of the filter, where it runs with others."""
        if self._sections.get("filter", {}) != filter_settings:
            self.restart(filter=filter_settings)

    def close(self) -> None:
        self.enforcer.stop()

    # -- rules

    def rules(self, *rules: Mapping[str, Any]) -> BatchOutcome:
        """Replaces all rules. One without an id is r0, r1, ... by its place."""
        named = [to_rule({"id": f"r{place}", **fields}) for place, fields in enumerate(rules)]
        return self.enforcer.replace_all(named, None)

    def add(self, **fields: Any) -> None:
        self.enforcer.add(to_rule(fields))

    def edit(self, rule_id: str, **fields: Any) -> None:
        self.enforcer.edit(rule_id, lambda rule: to_rule({**rule.fields(), **fields}))

    def put(self, fields: Mapping[str, Any]) -> None:
        self.enforcer.replace(to_rule(fields))

    def batch(self, adds: Iterable[Mapping[str, Any]], deletes: Iterable[str]) -> None:
        self.enforcer.batch([to_rule(fields) for fields in adds], list(deletes))

    def delete(self, rule_id: str) -> None:
        self.enforcer.delete(rule_id)

    def name_interfaces(self, **names: int) -> None:
        """From now on these are the protected interfaces, by name."""
        self.interfaces = names
        self.enforcer._apply_interfaces(names)

    def hits(self, rule_id: str) -> tuple[int, int]:
        """Packets and bytes."""
        view = self.enforcer.rule(rule_id)
        return view.packets, view.bytes

    def all_hits(self) -> dict[str, tuple[int, int]]:
        """Of every rule that was hit."""
        views, _ = self.enforcer.rules(RuleQuery(), 0, sys.maxsize)
        return {view.rule.id: (view.packets, view.bytes) for view in views if view.packets}

    # -- packets

    def judge(self, frame: bytes, hook: str = "ingress", link: str = "ethernet") -> Judged:
        """Runs the program of a hook and link on a frame; checks that just this one packet was counted."""
        returned, _, _ = bpf.test_run(self.program(hook, link), frame)
        ((counted, packets_and_bytes),) = self.counted_since_last().items()
        assert packets_and_bytes == (1, len(frame))
        assert counted[:2] == (hook, VERDICT_OF[hook][returned])
        return Judged(*counted[1:])

    def program(self, hook: str, link: str = "ethernet") -> int:
        """A descriptor."""
        return self.kernel._set.programs[PROGRAMS[hook][link == "ethernet"]]

    def program_ids(self) -> dict[str, int]:
        return {name: bpf.program_info(fd).id for name, fd in self.kernel._set.programs.items()}

    def counted_since_last(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        """Packets and bytes by hook, verdict and reason that were counted since the last time this was asked."""
        counted = self._read_counters()
        changed, self._counted = counted - self._counted, counted
        seen = {}
        for place in np.flatnonzero(changed.any(axis=1)).tolist():
            rest, reason = divmod(place, C["REASON_CAPACITY"])
            hook, verdict = divmod(rest, C["VERDICT_COUNT"])
            packets, size = changed[place].tolist()
            seen[HOOKS[hook], VERDICTS[verdict], REASONS[reason]] = (packets, size)
        return seen

    def _read_counters(self) -> npt.NDArray[np.int64]:
        """Packets and bytes by index, of all CPUs: (COUNTERS_PER_INTERFACE, 2). One system call."""
        maps = self.kernel._set.maps
        rows = maps.arrays["interface_slots"]
        (slot,) = rows["slot"][rows["ifindex"] == HERE]
        count = C["COUNTERS_PER_INTERFACE"]
        before_first = np.array([int(slot) * count - 1, 0], "<u4")
        keys, values = np.zeros(count, "<u4"), np.zeros((count, self._cpus, 2), "<i8")
        pointers = [array.ctypes.data for array in (before_first, before_first[1:], keys, values)]
        attr = struct.pack("=QQQQIIQQ", *pointers, count, maps["counters"].fd, 0, 0)
        bpf.call(bpf.MAP_LOOKUP_BATCH, attr, "reading counters", (errno.ENOENT,))
        return values.sum(axis=1)
