"""Judges a packet for a question: by programs of the same text over the same pinned maps, in test runs.

Owns loading those programs when the first question comes (bpf/test_filter.c) and the bytes of struct test_run. Nothing
is counted and nothing is written but that struct. Not thread-safe: one question at a time.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from firewall.datapath import Answer, Key, Question, Read
from firewall.errors import Conflict
from firewall.kernel import bpf, bpffs, program_set
from firewall.kernel.assembly import assemble
from firewall.kernel.bpf import Map
from firewall.kernel.datapath import KernelDatapath
from firewall.kernel.maps import PinnedMaps
from firewall.kernel.program_cache import compiled
from firewall.kernel.source import TEST_PROGRAMS, Capacities, program_fingerprint, question_order
from firewall.layout import LAYOUT, RANK_NONE, REASONS, C

_RUN = LAYOUT.structs["test_run"]
_RULE = REASONS.index("rule")
# What stands before a frame, and how much of one a test run takes in one piece on every kernel.
_PREFIX = bytes(C["TEST_PREFIX"])
MOST_BYTES = 2048


class Questions:
    """Programs for the maps of one program set."""

    def __init__(
        self, pins: Path, maps: PinnedMaps, capacities: Capacities, cache: Path | None = None
    ) -> None:
        """`pins`: below which the maps are pinned; `cache`: where compiled programs are kept. Raises
        ProgramRejected, or Conflict where the files on disk are not those that the running programs were made of."""
        if int(maps.control["program"]) != program_fingerprint(capacities):
            raise Conflict(
                "the programs on disk are not those that judge packets now",
                "restart the service: it was upgraded while it ran",
                code="programs_changed",
            )
        bpffs.ensure(pins / "tests")
        try:
            bpffs.ensure(pins / "tests" / "programs")
            (pins / "tests" / "maps").mkdir(exist_ok=True)
            for name, each in maps.maps.items():
                bpf.pin(each.fd, pins / "tests" / "maps" / name)
            assemble(compiled(question_order(capacities), cache), pins / "tests")
            self._programs = [bpf.get(pins / "tests" / "programs" / name) for name in TEST_PROGRAMS]
            self._runs = Map.pinned(pins / "tests" / "maps" / "test_runs")
        finally:
            program_set.discard(pins / "tests")

    def close(self) -> None:
        for fd in self._programs:
            os.close(fd)
        self._runs.close()

    def judge(self, question: Question, datapath: KernelDatapath) -> Answer:
        run = np.zeros(1, _RUN)
        run["ifindex"], run["length"] = question.ifindex, question.length
        run["is_bare"] = not question.has_ethernet
        place = question.hook.to_bytes(4, "little")
        self._runs.update(place, run.tobytes())
        bpf.test_run(self._programs[question.hook], _PREFIX + question.frame[:MOST_BYTES])
        found = np.frombuffer(self._runs.lookup(place) or bytes(_RUN.itemsize), _RUN)[0]
        if not found["is_judged"]:
            raise Conflict("the test run judged nothing", "see the service's log", code="test_failed")
        read = _read(found)
        return Answer(int(found["verdict"]), int(found["reason"]), _winner(found, read, datapath), read)


def _winner(found: np.void, read: Read, datapath: KernelDatapath) -> int | None:
    """The handle that the maps have for it."""
    if found["reason"] != _RULE or found["rank"] == RANK_NONE:
        return None
    if found["is_policy"]:
        return int(found["handle"])
    side = int(found["scope"]) >> C["SCOPE_SIDE_BIT"] & 1
    address = read.source if side == C["SIDE_SOURCE"] else read.destination
    bits, length = (32 if read.version == 4 else 128), int(found["prefix"])
    network = address >> (bits - length) << (bits - length)
    return datapath.entry_handle(Key(read.version, int(found["scope"]), length, network))


def _read(found: np.void) -> Read:
    version = (4, 6)[int(found["family"])] if found["is_ip"] else 0
    has = int(found["has"])
    ports = (int(found["source_port"]), int(found["destination_port"]))
    return Read(
        version,
        _address(found["source"], version),
        _address(found["destination"], version),
        int(found["protocol"]),
        bool(found["is_fragment"]),
        bool(found["is_later_fragment"]),
        ports if has & C["REPORT_HAS_PORTS"] else None,
        int(found["tcp_flags"]) if has & C["REPORT_HAS_FLAGS"] else None,
        (int(found["icmp_type"]), int(found["icmp_code"])) if has & C["REPORT_HAS_ICMP"] else None,
    )


def _address(words: np.ndarray[tuple[int], np.dtype[np.uint32]], version: int) -> int:
    """Of words in network order."""
    return int.from_bytes(words.tobytes()[: 4 if version == 4 else 16], "big") if version else 0
