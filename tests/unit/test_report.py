"""From the kernel's record of a packet to the words of the API."""

from __future__ import annotations

import time

import pytest

from firewall.address import parse_prefix
from firewall.layout import C
from firewall.listener import Wanted
from firewall.report import CAPTURE, EVENTS, Report, decode, handle_of
from tests.records import record


def decoded(raw: bytes) -> Report:
    return decode(raw, 0, lambda index: f"eth{index - 2}", {7: "web"})


def test_a_record_becomes_an_event_with_every_field() -> None:
    raw = record(time=1_700_000_000_123_456_789, handle=7, length=98)
    assert handle_of(raw) == 7
    assert decoded(raw).fields() == {
        "time": "2023-11-14T22:13:20.123456Z",
        "hook": "ingress",
        "interface": "eth0",
        "rule": "web",
        "reason": "rule",
        "verdict": "drop",
        "kind": "judged",
        "source": "10.0.0.2",
        "destination": "10.0.0.1",
        "source_port": 40000,
        "destination_port": 53,
        "protocol": "udp",
        "icmp_type": None,
        "tcp_flags": None,
        "length": 98,
    }


def test_what_a_packet_does_not_have_is_null() -> None:
    fields = decoded(record(is_ip=0, has=0, reason="malformed_link")).fields()
    absent = ("rule", "source", "destination", "source_port", "destination_port", "protocol")
    assert {name: fields[name] for name in absent} == dict.fromkeys(absent)
    assert fields["reason"] == "malformed_link"


def test_flags_of_tcp_and_the_type_of_icmp_are_told() -> None:
    flags = decoded(
        record(protocol=6, has=C["REPORT_HAS_PORTS"] | C["REPORT_HAS_FLAGS"], tcp_flags=0x12)
    ).fields()
    assert (flags["protocol"], flags["tcp_flags"]) == ("tcp", ["syn", "ack"])
    icmp = decoded(record(protocol=1, has=C["REPORT_HAS_ICMP"], icmp_type=3, icmp_code=1)).fields()
    assert (icmp["icmp_type"], icmp["source_port"]) == ("3/1", None)


def test_addresses_of_ipv6_are_whole() -> None:
    fields = decoded(record("2001:db8::1", "2001:db8:ffff::2")).fields()
    assert (fields["source"], fields["destination"]) == ("2001:db8::1", "2001:db8:ffff::2")


def test_the_captured_bytes_follow_the_record() -> None:
    assert decoded(record(content=b"frame")).content == b"frame"
    assert decoded(record()).content == b""


def test_a_rule_that_is_gone_has_no_name() -> None:
    assert decoded(record(handle=8)).rule is None


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (Wanted(), True),
        (Wanted(rule="web"), True),
        (Wanted(rule="other"), False),
        (Wanted(address=parse_prefix("10.0.0.2")), True),
        (Wanted(address=parse_prefix("10.0.0.1")), True),
        (Wanted(address=parse_prefix("10.0.0.0/8")), True),
        (Wanted(address=parse_prefix("0.0.0.0/0")), True),
        (Wanted(address=parse_prefix("10.0.0.3")), False),
        (Wanted(address=parse_prefix("::/0")), False),
        (Wanted(interface="eth0"), True),
        (Wanted(interface="eth*"), True),
        (Wanted(interface="wg0"), False),
        (Wanted(reason="rule"), True),
        (Wanted(reason="fragment"), False),
        (Wanted(hook="ingress"), True),
        (Wanted(hook="egress"), False),
        (Wanted(rule="web", hook="egress"), False),
        (Wanted(snap_length=100), False),
    ],
)
def test_filters_must_all_fit(wanted: Wanted, fits: bool) -> None:
    assert wanted.fits(decoded(record(handle=7))) is fits


def test_a_capture_gets_what_passed_only_where_it_asks_for_all() -> None:
    passed = decoded(record(verdict="pass", streams=1 << CAPTURE))
    assert not Wanted(snap_length=100).fits(passed)
    assert Wanted(snap_length=100, is_all=True).fits(passed)


def test_a_stream_gets_what_its_own_limit_let_through() -> None:
    both = decoded(record(streams=1 << CAPTURE | 1 << EVENTS))
    assert Wanted().fits(both) and Wanted(snap_length=1).fits(both)


def test_a_report_is_made_json_once_for_all() -> None:
    report = decoded(record(time=time.monotonic_ns()))
    assert report.json is report.json
