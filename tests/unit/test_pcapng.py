"""The bytes of a capture, read back by scapy, which was written by others."""

from __future__ import annotations

import io
import struct

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgReader

from firewall.pcapng import PcapngWriter
from firewall.report import CAPTURE, Report, decode
from tests.records import record

FRAME = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="10.0.0.2") / UDP() / b"12345")


def report(content: bytes = FRAME, **fields: object) -> Report:
    raw = record(content=content, streams=1 << CAPTURE, handle=7, **fields)  # type: ignore[arg-type]
    return decode(raw, 0, lambda index: f"eth{index - 2}", {7: "web"})


def test_scapy_reads_back_what_was_captured() -> None:
    writer = PcapngWriter("ebpf-fw test", 1514)
    time_ns = 1_700_000_000_123_456_789
    reports = [
        report(time=time_ns, length=len(FRAME)),
        report(time=time_ns, hook="egress", ifindex=3, length=9000),
        report(FRAME[14:], time=time_ns, is_bare=1, ifindex=4),
        report(time=time_ns, length=len(FRAME)),
    ]
    packets = list(PcapNgReader(io.BytesIO(writer.header() + b"".join(map(writer.packet, reports)))))
    assert [bytes(each) for each in packets] == [FRAME, FRAME, FRAME[14:], FRAME]
    assert [type(each) for each in packets] == [Ether, Ether, IP, Ether]
    assert [each.sniffed_on for each in packets] == ["eth0", "eth1", "eth2", "eth0"]
    assert [each.direction for each in packets] == [1, 2, 1, 1]
    assert [each.wirelen for each in packets] == [len(FRAME), 9000, 100, len(FRAME)]
    assert {each.comments[0] for each in packets} == {b"rule=web reason=rule verdict=drop"}
    assert all(abs(float(each.time) - time_ns / 1e9) < 1e-6 for each in packets)


def test_no_more_is_kept_of_a_packet_than_this_reader_asked_for() -> None:
    writer = PcapngWriter("ebpf-fw test", 20)
    (packet,) = PcapNgReader(io.BytesIO(writer.header() + writer.packet(report(length=len(FRAME)))))
    assert (len(packet.original), packet.wirelen) == (20, len(FRAME))


def test_every_block_says_its_length_at_both_ends() -> None:
    writer = PcapngWriter("ebpf-fw test", 1514)
    data = writer.header() + writer.packet(report(FRAME[:41])) + writer.packet(report(b""))
    at, kinds = 0, []
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length % 4 == 0
        assert struct.unpack_from("<I", data, at + length - 4) == (length,)
        kinds.append(kind)
        at += length
    assert (at, kinds) == (len(data), [0x0A0D0D0A, 1, 6, 6])


def test_a_packet_without_a_rule_says_its_reason_alone() -> None:
    raw = record(reason="fragment")
    assert decode(raw, 0, str, {}).comment == "reason=fragment verdict=drop"
