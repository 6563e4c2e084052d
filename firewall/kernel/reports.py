"""The kernel's side of reports: the words that say who listens, the ring, and what never came into it.

Owns control.listening and its neighbours, which no change of rules touches, and reading the reporter's maps.
What is in a record, and who gets it, is the business of firewall/reporting.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from firewall.kernel.bpf import Map
from firewall.kernel.clock import HZ
from firewall.kernel.maps import PinnedMaps
from firewall.kernel.ring_buffer import RingBuffer
from firewall.layout import LAYOUT, C
from firewall.report import Limit, NotSent

_BUCKET = LAYOUT.structs["report_bucket"]


class KernelReports:
    """ReportSource of firewall/report.py. The maps are those of every set of programs until the service ends, so what
    is opened here stays right when a larger set takes over."""

    def __init__(self, maps: PinnedMaps, cpus: int) -> None:
        """Whoever listened before is gone: a service that was killed leaves the word as it was."""
        self._control = maps.arrays["control_map"]
        self._buckets = Map(os.dup(maps["report_buckets"].fd))
        self._cpus = cpus
        self._ring = RingBuffer(maps["reports"].fd, maps["reports"].info.max_entries)
        self.listen(0, 0)

    def limit(self, limits: Sequence[Limit]) -> None:
        words = self._control[0]["report_limits"]
        for stream, each in enumerate(limits):
            words[stream]["most"] = max(each.burst, 1) * HZ
            words[stream]["rate"] = each.rate
            words[stream]["cost"] = HZ

    def listen(self, listening: int, snap_length: int) -> None:
        self._control[0]["snap_length"] = min(snap_length, C["SNAP_LENGTH_MAX"])
        self._control[0]["listening"] = listening

    @property
    def listening(self) -> int:
        return int(self._control[0]["listening"])

    def wait(self, timeout_s: float) -> None:
        self._ring.wait(timeout_s)

    def wake(self) -> None:
        self._ring.wake()

    def read(self, most: int) -> list[bytes]:
        return self._ring.read(most)

    def not_sent(self) -> list[NotSent]:
        found = []
        for stream in range(C["STREAM_COUNT"]):
            raw = self._buckets.lookup(stream.to_bytes(4, "little"), _BUCKET.itemsize * self._cpus)
            rows = np.frombuffer(raw or b"", _BUCKET)
            found.append(NotSent(int(rows["suppressed"].sum()), int(rows["lost"].sum())))
        return found

    def close(self) -> None:
        self.listen(0, 0)
        self.let_go()

    def let_go(self) -> None:
        """As the end of the process does: the kernel goes on reporting."""
        self._ring.close()
        self._buckets.close()
