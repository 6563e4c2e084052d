"""Reports of packets as the loaded programs make them: frames in, events and bytes out of the ring buffer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from firewall.kernel import bpf
from firewall.layout import C
from firewall.listener import Listener, Wanted
from firewall.report import CAPTURE, Limit, Report
from firewall.reporting import ReportLimits
from tests.datapath.loaded import SHORTEST_FRAME, Loaded
from tests.unit.host import wait_for

HOOKS = ("ingress", "egress")
UDP_FRAME = bytes(Ether() / IP(src="10.0.0.2", dst="10.0.0.1") / UDP(sport=4000, dport=53) / (b"x" * 30))
ALL = 1514


@contextmanager
def listening(loaded: Loaded, wanted: Wanted | None = None) -> Iterator[Listener]:
    reporting = loaded.enforcer.reporting
    listener = reporting.listen(wanted or Wanted(), lambda: None, room=100_000)
    try:
        yield listener
    finally:
        reporting.leave(listener)


def heard(listener: Listener, count: int = 1) -> list[Report]:
    found: list[Report] = []
    wait_for(lambda: (found.extend(listener.take(100_000).reports), len(found) >= count)[1])
    return found


@contextmanager
def on_one_cpu() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def limited(loaded: Loaded, limits: ReportLimits) -> Iterator[None]:
    before = loaded.enforcer.reporting.limits
    loaded.enforcer.reporting.configure(limits)
    try:
        yield
    finally:
        loaded.enforcer.reporting.configure(before)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_dropped_packet_is_told_with_all_that_is_known_of_it(firewall: Loaded, hook: str) -> None:
    firewall.rules({"id": "web", "direction": "both", "sources": ["10.0.0.0/8"]})
    with listening(firewall) as listener:
        assert firewall.judge(UDP_FRAME, hook).verdict == "drop"
        (report,) = heard(listener)
    fields = report.fields()
    fields.pop("time")
    assert fields == {
        "hook": hook, "interface": "lo", "rule": "web", "reason": "rule", "verdict": "drop", "kind": "judged",
        "source": "10.0.0.2", "destination": "10.0.0.1", "source_port": 4000, "destination_port": 53,
        "protocol": "udp", "icmp_type": None, "tcp_flags": None, "length": len(UDP_FRAME),
    }  # fmt: skip
    assert report.content == b""


PACKETS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "an address of IPv6": (
        Ether() / IPv6(src="2001:db8::5", dst="2001:db8::1") / TCP(dport=443, flags="S"),
        {"sources": ["2001:db8::5"]},
        {"rule": "r0", "source": "2001:db8::5", "destination_port": 443, "tcp_flags": ["syn"]},
    ),
    "a destination, where a shorter source has the worse priority": (
        Ether() / IP(src="10.0.0.2", dst="10.9.9.9") / UDP(),
        {"destinations": ["10.9.9.0/24"], "priority": 5},
        {"rule": "r0", "destination": "10.9.9.9"},
    ),
    "a rule of the policy": (
        Ether() / IP(src="10.0.0.2") / TCP(dport=22),
        {"protocols": ["tcp"], "destination_ports": ["22"]},
        {"rule": "r0", "protocol": "tcp", "destination_port": 22},
    ),
    "a rule of the policy for IPv6": (
        Ether() / IPv6(src="2001:db8::5") / UDP(dport=53),
        {"protocols": ["udp"], "sources": ["2001:db8::/32"]},
        {"rule": "r0", "protocol": "udp"},
    ),
    "ICMP": (
        Ether() / IP(src="10.0.0.2") / ICMP(type=3, code=1) / b"12345678",
        {"sources": ["10.0.0.2"]},
        {"rule": "r0", "protocol": "icmp", "icmp_type": "3/1", "source_port": None},
    ),
    "what is behind a VLAN tag": (
        Ether() / Dot1Q(vlan=5) / IP(src="10.0.0.2") / UDP(dport=53),
        {"sources": ["10.0.0.2"]},
        {"rule": "r0", "source": "10.0.0.2", "destination_port": 53},
    ),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("case", PACKETS)
def test_the_rule_that_decided_is_named(firewall: Loaded, hook: str, case: str) -> None:
    packet, rule, expected = PACKETS[case]
    other = {"id": "other", "sources": ["10.0.0.0/16", "2001::/16"], "priority": 2000, "direction": "both"}
    firewall.rules({"direction": "both", **rule}, other)
    with listening(firewall) as listener:
        assert firewall.judge(bytes(packet), hook).reason == "rule"
        (report,) = heard(listener)
    fields = report.fields()
    assert {name: fields[name] for name in expected} == expected


def test_an_address_rule_that_beats_the_policy_is_named_and_the_other_way_round(firewall: Loaded) -> None:
    policy = {"id": "policy", "protocols": ["udp"], "priority": 20}
    firewall.rules(policy, {"id": "address", "sources": ["10.0.0.2"], "priority": 10})
    with listening(firewall) as listener:
        firewall.judge(UDP_FRAME)
        assert heard(listener)[0].rule == "address"
        firewall.rules(policy, {"id": "address", "sources": ["10.0.0.2"], "priority": 30})
        firewall.judge(UDP_FRAME)
        assert heard(listener)[0].rule == "policy"


def test_drops_without_a_rule_have_their_reason(firewall: Loaded) -> None:
    firewall.configure(default_ingress="drop", fragments="drop")
    cut = bytes(Ether() / IP(src="10.0.0.2") / TCP())[:40]
    fragment = bytes(Ether() / IP(src="10.0.0.2", flags="MF") / UDP() / b"12345678")
    with listening(firewall) as listener:
        for frame in (UDP_FRAME, cut, fragment):
            assert firewall.judge(frame).verdict == "drop"
        found = [(each.rule, each.reason) for each in heard(listener, 3)]
    assert found == [(None, "default"), (None, "malformed_ipv4"), (None, "fragment")]


def test_packets_that_pass_are_no_events(firewall: Loaded) -> None:
    firewall.rules({"sources": ["10.0.0.2"]}, {"sources": ["10.0.0.3"], "action": "allow"})
    with listening(firewall) as listener:
        passed = bytes(Ether() / IP(src="10.0.0.3") / UDP())
        assert firewall.judge(passed).verdict == "pass"
        firewall.judge(UDP_FRAME)
        assert [each.rule for each in heard(listener)] == ["r0"]


@pytest.mark.parametrize("hook", HOOKS)
def test_nothing_is_reported_when_nobody_listens(firewall: Loaded, hook: str) -> None:
    firewall.rules({"direction": "both", "sources": ["10.0.0.2"]})
    ring = firewall.kernel.report_source()
    try:
        firewall.judge(UDP_FRAME, hook)
        assert ring.read(10) == []
        ring.listen(C["LISTEN_DROPPED"] | C["LISTEN_EVENTS"], 0)
        firewall.judge(UDP_FRAME, hook)
        assert len(ring.read(10)) == 1
    finally:
        ring.close()
    assert firewall.kernel._set.maps.control["listening"] == 0


# -- bytes


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("size", [*range(60, 78), 1000, 1513, 1514])
def test_a_capture_has_the_bytes_of_the_frame(firewall: Loaded, hook: str, size: int) -> None:
    firewall.rules({"direction": "both", "sources": ["10.0.0.2"]})
    frame = bytes(Ether() / IP(src="10.0.0.2") / UDP() / bytes(each % 251 for each in range(size - 42)))
    with listening(firewall, Wanted(snap_length=ALL)) as listener:
        firewall.judge(frame, hook)
        (report,) = heard(listener)
    assert (report.content, report.length) == (frame, size)
    assert (report.hook, report.rule, report.is_bare) == (hook, "r0", False)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("snap", [1, 7, 8, 9, 63, 64, 1514])
def test_no_more_is_captured_than_asked_for_and_the_length_is_the_true_one(
    firewall: Loaded, hook: str, snap: int
) -> None:
    firewall.rules({"direction": "both", "sources": ["10.0.0.2"]})
    frame = bytes(Ether() / IP(src="10.0.0.2") / UDP() / bytes(each % 251 for each in range(2000)))
    with listening(firewall, Wanted(snap_length=snap)) as listener:
        firewall.judge(frame, hook)
        (report,) = heard(listener)
    assert (report.content, report.length) == (frame[:snap], len(frame))


@pytest.mark.parametrize("hook", HOOKS)
def test_a_capture_of_all_has_what_passed_and_what_is_not_ip(firewall: Loaded, hook: str) -> None:
    firewall.rules({"direction": "both", "sources": ["10.0.0.2"]})
    passed = bytes(Ether() / IP(src="10.0.0.3") / UDP() / b"12345678")
    arp = bytes(Ether() / ARP())
    with listening(firewall, Wanted(snap_length=ALL, is_all=True)) as listener:
        for frame in (passed, UDP_FRAME, arp):
            firewall.judge(frame, hook)
        found = heard(listener, 3)
    assert [(each.verdict, each.reason, each.content) for each in found] == [
        ("pass", "default", passed), ("drop", "rule", UDP_FRAME), ("pass", "not_ip", arp),
    ]  # fmt: skip
    assert found[2].fields()["source"] is None


@pytest.mark.parametrize("hook", HOOKS)
def test_a_device_without_ethernet_is_captured_from_the_ip_header_on(firewall: Loaded, hook: str) -> None:
    firewall.rules({"direction": "both", "sources": ["10.0.0.2"]})
    packet = bytes(IP(src="10.0.0.2") / UDP() / b"12345678")
    assert len(packet) > SHORTEST_FRAME
    with listening(firewall, Wanted(snap_length=ALL)) as listener:
        firewall.judge(packet, hook, "ip") if hook == "ingress" else bpf.test_run(
            firewall.program(hook, "ip"), packet
        )
        found = heard(listener)[0]
    firewall.counted_since_last()
    assert found.is_bare


def test_events_and_a_capture_at_once_get_one_report_each_of_their_own_limit(firewall: Loaded) -> None:
    firewall.rules({"sources": ["10.0.0.2"]})
    limits = ReportLimits(events=Limit(1, 2), capture=Limit(1, 4))
    full = ReportLimits(events=Limit(1_000_000, 2), capture=Limit(1_000_000, 4))
    with (
        on_one_cpu(),
        limited(firewall, full),
        listening(firewall) as events,
        listening(firewall, Wanted(snap_length=ALL)) as capture,
    ):
        firewall.judge(UDP_FRAME)  # fills both buckets and takes one of each
        assert (len(heard(events)), len(heard(capture))) == (1, 1)
        firewall.enforcer.reporting.configure(limits)
        bpf.test_run(firewall.program("ingress"), UDP_FRAME, 10)
        assert len(heard(capture, 3)) == 3
        assert len(heard(events)) == 1
    firewall.counted_since_last()


# -- limits


def test_the_bucket_of_a_cpu_lets_a_burst_through_and_counts_the_rest(firewall: Loaded) -> None:
    firewall.rules({"sources": ["10.0.0.2"]})
    with on_one_cpu(), limited(firewall, ReportLimits(Limit(1_000_000, 6))), listening(firewall) as listener:
        firewall.judge(UDP_FRAME)  # fills the bucket, whatever was left in it, and takes one
        heard(listener)
        firewall.enforcer.reporting.configure(ReportLimits(Limit(1, 6)))
        bpf.test_run(firewall.program("ingress"), UDP_FRAME, 10_000)
        reports, suppressed = 0, 0

        def all_accounted() -> bool:
            nonlocal reports, suppressed
            taken = listener.take(100_000)
            reports, suppressed = reports + len(taken.reports), suppressed + taken.suppressed
            return reports + suppressed >= 10_000

        wait_for(all_accounted)
    assert reports + suppressed == 10_000
    assert 5 <= reports <= 7  # a token may have come meanwhile, or the run gone on on another CPU
    firewall.counted_since_last()


def test_tokens_come_back_with_time(firewall: Loaded) -> None:
    firewall.rules({"sources": ["10.0.0.2"]})
    with limited(firewall, ReportLimits(events=Limit(20, 1))), on_one_cpu(), listening(firewall) as listener:

        def another() -> bool:
            bpf.test_run(firewall.program("ingress"), UDP_FRAME, 100)
            return bool(listener.take(10).reports)

        wait_for(another)  # not at once: whoever was here before may have left the bucket empty
        wait_for(another)
    firewall.counted_since_last()


def test_a_full_ring_loses_reports_and_slows_no_verdict(firewall: Loaded) -> None:
    firewall.rules({"sources": ["10.0.0.2"]})
    ring = firewall.kernel.report_source()
    big = bytes(Ether() / IP(src="10.0.0.2") / UDP() / bytes(1472))
    try:
        ring.limit((Limit(1_000_000, 1_000_000), Limit(1_000_000, 1_000_000)))
        ring.listen(C["LISTEN_DROPPED"] | C["LISTEN_CAPTURE"], ALL)
        before = ring.not_sent()[CAPTURE]
        verdict, _, _ = bpf.test_run(firewall.program("ingress"), big, 5_000)
        assert verdict == 1  # XDP_DROP
        lost = ring.not_sent()[CAPTURE].lost - before.lost
        assert lost > 1000
        assert len(ring.read(10_000)) + lost == 5_000
        bpf.test_run(firewall.program("ingress"), big, 10)
        assert len(ring.read(100)) == 10
    finally:
        ring.close()
        firewall.enforcer.reporting.configure(ReportLimits())
        firewall.counted_since_last()


def test_the_ring_is_read_over_its_end_many_times(firewall: Loaded) -> None:
    """Some 5 MB through a ring of 4 MB: records of every size, none damaged."""
    firewall.rules({"sources": ["10.0.0.2"]})
    ring = firewall.kernel.report_source()
    try:
        ring.limit((Limit(1, 1), Limit(1_000_000, 1_000_000)))
        ring.listen(C["LISTEN_DROPPED"] | C["LISTEN_CAPTURE"], ALL)
        for size in range(60, 1514, 31):
            frame = bytes(Ether() / IP(src="10.0.0.2") / UDP() / (bytes([size % 256]) * (size - 42)))
            bpf.test_run(firewall.program("ingress"), frame, 150)
            assert {each[80:] for each in ring.read(150)} == {frame}
            assert ring.read(1) == []
    finally:
        ring.close()
        firewall.enforcer.reporting.configure(ReportLimits())
        firewall.counted_since_last()


# -- programs that come and go


def test_reports_go_on_when_larger_programs_take_over(fresh: Loaded) -> None:
    fresh.rules({"id": "web", "protocols": ["udp"], "sources": ["10.0.0.2"]})
    before = fresh.program_ids()
    with listening(fresh) as listener:
        many = [
            {"id": f"p{n}", "protocols": ["tcp"], "sources": [f"10.{n >> 8}.{n & 255}.0/24"],
             "destination_ports": [str(n + 1)]} for n in range(1, 1500)
        ]  # fmt: skip
        fresh.rules({"id": "web", "protocols": ["udp"], "sources": ["10.0.0.2"]}, *many)
        assert fresh.program_ids()["fw_xdp_ethernet"] != before["fw_xdp_ethernet"]
        fresh.judge(UDP_FRAME)
        assert heard(listener)[0].rule == "web"


def test_a_start_after_a_crash_adopts_the_reporter_and_forgets_who_listened(fresh: Loaded) -> None:
    fresh.rules({"id": "web", "sources": ["10.0.0.2"]})
    before = fresh.program_ids()
    fresh.enforcer.reporting.listen(Wanted(), lambda: None)
    fresh.restart()
    assert fresh.program_ids() == before
    assert fresh.kernel._set.maps.control["listening"] == 0
    assert fresh.hits("web")[0] == 0
    with listening(fresh) as listener:
        fresh.judge(UDP_FRAME)
        assert heard(listener)[0].rule == "web"


def test_who_listens_is_no_drift(firewall: Loaded) -> None:
    with listening(firewall, Wanted(snap_length=77)):
        assert firewall.enforcer._watched is not None
        assert firewall.kernel.audit(firewall.enforcer._ruleset.addresses) == []
        firewall.kernel.restore()
        assert firewall.kernel._set.maps.control["listening"] != 0
        assert firewall.kernel._set.maps.control["snap_length"] == 77


def test_where_the_reporter_cannot_be_called_the_verdict_stays(firewall: Loaded) -> None:
    firewall.rules({"sources": ["10.0.0.2"]})
    ways = [firewall.kernel._set.maps[name] for name in ("report_xdp", "report_tc")]
    with listening(firewall):
        for way in ways:
            way.delete(bytes(4))
        try:
            for hook in ("ingress",):
                assert firewall.judge(UDP_FRAME, hook).verdict == "drop"
        finally:
            for way, name in zip(ways, ("fw_report_xdp", "fw_report_tc"), strict=True):
                way.update(bytes(4), firewall.kernel._set.programs[name].to_bytes(4, "little"))
