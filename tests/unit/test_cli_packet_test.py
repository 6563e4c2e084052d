"""`ebpf-fw test`, `rule add --observe` and `rule promote`: what they send, and how an answer looks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.unit.fake_service import FakeService, fake_service
from tests.unit.test_cli import RULE, run

MATCH = {"id": "net", "action": "drop", "priority": 1000, "mode": "enforce"}
ANSWER: dict[str, Any] = {
    "hook": "ingress",
    "interface": "eth0",
    "verdict": "pass",
    "reason": "rule",
    "rule": {"id": "ssh", "action": "allow", "priority": 10, "mode": "enforce"},
    "also_matched": [MATCH],
    "also_matched_total": 3,
    "consistent": True,
    "packet": {
        "family": "ipv6",
        "source": "2001:db8::7",
        "destination": "2001:db8::2",
        "protocol": "tcp",
        "source_port": 49152,
        "destination_port": 22,
        "tcp_flags": ["syn"],
        "icmp_type": None,
        "fragment": "first",
        "length": 100,
    },
    "notes": ["ingress of eth0 is not attached"],
}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    with fake_service() as started:
        monkeypatch.setenv("EBPF_FW_URL", started.url)
        monkeypatch.delenv("COLUMNS", raising=False)
        yield started


def test_only_what_was_given_is_asked(service: FakeService) -> None:
    service.answers("POST", "/v1/test", 200, ANSWER)
    assert run("test").exit_code == 0
    assert service.requests[0].body == {"hook": "ingress"}


def test_every_option_becomes_its_field(service: FakeService) -> None:
    service.answers("POST", "/v1/test", 200, ANSWER)
    result = run(
        *(
            "test",
            "--hook",
            "egress",
            "--interface",
            "eth0",
            "--source",
            "2001:db8::7",
            "--destination",
            "::1",
        ),
        *("--protocol", "tcp", "--source-port", "1", "--destination-port", "22", "--tcp-flags", "syn,ack"),
        *("--icmp-type", "3/1", "--fragment", "first"),
    )
    assert result.exit_code == 0
    assert service.requests[0].body == {
        "hook": "egress",
        "interface": "eth0",
        "source": "2001:db8::7",
        "destination": "::1",
        "protocol": "tcp",
        "source_port": "1",
        "destination_port": "22",
        "tcp_flags": ["syn", "ack"],
        "icmp_type": "3/1",
        "fragment": "first",
    }


def test_the_answer_names_the_rule_and_the_others(service: FakeService) -> None:
    service.answers("POST", "/v1/test", 200, ANSWER)
    result = run("test", "--frame", "45:00", "--link", "ip")
    assert service.requests[0].body == {"hook": "ingress", "frame": "45:00", "link": "ip"}
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[:4] == [
        "verdict pass",
        "reason rule",
        "rule ssh (allow, priority 10)",
        "packet ingress of eth0, tcp [2001:db8::7]:49152 > [2001:db8::2]:22 flags syn first fragment",
    ]
    assert "net drop 1000 enforce" in lines
    assert "and 2 more" in result.stderr and "not attached" in result.stderr


def test_a_packet_without_rule_and_without_ip(service: FakeService) -> None:
    bare = {**ANSWER, "reason": "not_ip", "rule": None, "packet": None, "also_matched": [], "notes": []}
    service.answers("POST", "/v1/test", 200, {**bare, "also_matched_total": 0})
    result = run("test", "--frame", "00")
    assert "not_ip" in result.stdout and "also matched" not in result.stdout


def test_with_json_the_answer_is_the_services_own(service: FakeService) -> None:
    service.answers("POST", "/v1/test", 200, ANSWER)
    assert orjson.loads(run("test", "--json").stdout) == ANSWER


def test_a_file_is_sent_as_it_is(service: FakeService, tmp_path: Path) -> None:
    items = [{"number": 1, **ANSWER}, {"number": 2, **ANSWER, "rule": None, "reason": "default"}]
    service.answers("POST", "/v1/test", 200, {"items": items, "total": 2, "truncated": True})
    file = tmp_path / "some.pcap"
    file.write_bytes(b"[1, 2]")
    result = run("test", "--pcap", str(file), "--interface", "eth0", "--limit", "2")
    (request,) = service.requests
    assert (request.body, request.headers["Content-Type"]) == ("[1, 2]", "application/vnd.tcpdump.pcap")
    assert request.query == {"hook": ["ingress"], "interface": ["eth0"], "limit": ["2"]}
    assert [line.split()[:2] for line in result.stdout.splitlines()[-2:]] == [["1", "pass"], ["2", "pass"]]
    assert "the file holds more" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--pcap", "nosuch.pcap"),
        ("--pcap", "x", "--source-port", "1"),
        ("--limit", "3"),
        ("--hook", "in"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_a_usage_error(service: FakeService, arguments: tuple[str, ...]) -> None:
    assert run("test", *arguments).exit_code == 2
    assert service.requests == []


def test_observe_and_promote(service: FakeService) -> None:
    service.answers("POST", "/v1/rules", 201, {**RULE, "mode": "observe"})
    added = run("rule", "add", "--source", "203.0.113.0/24", "--observe")
    assert service.requests[0].body == {"sources": ["203.0.113.0/24"], "mode": "observe"}
    assert added.stdout.startswith("added web-1: observe drop from 203.0.113.0/24")
    service.answers("POST", "/v1/rules/web-1/promote", 200, {**RULE, "mode": "enforce"})
    assert run("rule", "promote", "web-1").stdout.startswith("promoted web-1: drop from")
    page = {
        "items": [{**RULE, "mode": "observe"}],
        "total": 1,
        "page": 1,
        "page_size": 1000,
        "total_pages": 1,
    }
    service.answers("GET", "/v1/rules", 200, page)
    assert "observes" in run("rule", "list").stdout
