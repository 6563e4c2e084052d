"""/v1/capture: a pcapng file of what the kernel in memory reports."""

from __future__ import annotations

import io
import threading

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import PcapNgReader

from firewall.layout import C
from firewall.report import CAPTURE
from tests.api.client import ApiClient
from tests.memory_kernel import MemoryKernel
from tests.records import record
from tests.unit.host import wait_for

FRAME = bytes(Ether() / IP(src="10.0.0.2") / UDP() / bytes(100))
DROPPED = record(content=FRAME, streams=1 << CAPTURE, reason="fragment", length=len(FRAME))
PASSED = record(content=FRAME, streams=1 << CAPTURE, reason="default", verdict="pass", length=len(FRAME))


def captured(api: ApiClient, kernel: MemoryKernel, query: str, *records: bytes) -> list[Packet]:
    def happens() -> None:
        wait_for(lambda: kernel.reports.listening)
        kernel.told = kernel.reports.listening, kernel.reports.snap_length  # type: ignore[attr-defined]
        kernel.reports.put(*records)

    wire = threading.Thread(target=happens)
    wire.start()
    answer = api("GET", f"/v1/capture?{query}")
    wire.join()
    assert answer.headers["content-type"] == "application/x-pcapng"
    assert kernel.reports.listening == 0
    return list(PcapNgReader(io.BytesIO(answer.content)))


def test_it_ends_with_the_packet_that_the_limit_says(api: ApiClient, kernel: MemoryKernel) -> None:
    packets = captured(api, kernel, "limit=3", *[DROPPED] * 5)
    assert [bytes(each) for each in packets] == [FRAME] * 3
    assert kernel.told == (C["LISTEN_DROPPED"] | C["LISTEN_CAPTURE"], 1514)  # type: ignore[attr-defined]
    assert packets[0].comments == [b"reason=fragment verdict=drop"]


def test_it_ends_when_the_time_is_over(api: ApiClient, kernel: MemoryKernel) -> None:
    assert len(captured(api, kernel, "seconds=0.3", DROPPED)) == 1


def test_what_passed_is_there_where_all_is_asked_for(api: ApiClient, kernel: MemoryKernel) -> None:
    packets = captured(api, kernel, "limit=2&all=true", PASSED, DROPPED)
    assert [each.comments[0] for each in packets] == [
        b"reason=default verdict=pass", b"reason=fragment verdict=drop",
    ]  # fmt: skip
    assert kernel.told[0] & C["LISTEN_CAPTURE_ALL"]  # type: ignore[attr-defined]
    assert len(captured(api, kernel, "limit=1", PASSED, DROPPED)) == 1


def test_filters_choose_packets(api: ApiClient, kernel: MemoryKernel) -> None:
    other = record("10.0.0.9", content=FRAME[:20], streams=1 << CAPTURE, reason="default")
    (packet,) = captured(api, kernel, "limit=1&address=10.0.0.9", DROPPED, other)
    assert packet.comments == [b"reason=default verdict=drop"]


def test_the_snap_length_goes_to_the_kernel_and_cuts(api: ApiClient, kernel: MemoryKernel) -> None:
    (packet,) = captured(api, kernel, "limit=1&snap_length=40", DROPPED)
    assert kernel.told[1] == 40  # type: ignore[attr-defined]
    assert (len(packet.original), packet.wirelen) == (40, len(FRAME))


@pytest.mark.parametrize(
    "query", ["limit=0", "seconds=0", "snap_length=0", "snap_length=2049", "all=perhaps"]
)
def test_limits_that_make_no_sense_are_refused(api: ApiClient, query: str) -> None:
    assert api("GET", f"/v1/capture?{query}").status_code == 422
