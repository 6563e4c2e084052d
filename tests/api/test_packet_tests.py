"""POST /v1/test on the in-memory kernel: what may be asked, and how the answer says what it says."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from tests.api.client import ApiClient
from tests.datapath.frames import tcp, udp
from tests.memory_kernel import MemoryKernel, memory_enforcer

ETH0 = {"interfaces": [{"name": "eth0"}]}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[ApiClient, MemoryKernel]]:
    enforcer, kernel = memory_enforcer(tmp_path, ETH0)
    try:
        with ApiClient(create_app(enforcer)) as client:
            yield client, kernel
    finally:
        enforcer.stop()


@pytest.fixture
def client(world: tuple[ApiClient, MemoryKernel]) -> ApiClient:
    return world[0]


def add(client: ApiClient, **fields: Any) -> None:
    assert client("POST", "/v1/rules", fields).status_code == 201


def ask(client: ApiClient, **fields: Any) -> dict[str, Any]:
    response = client("POST", "/v1/test", fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refused(client: ApiClient, status: int, **fields: Any) -> dict[str, Any]:
    response = client("POST", "/v1/test", fields)
    assert response.status_code == status, response.text
    problem: dict[str, Any] = response.json()
    return problem


def pcap(frames: list[bytes], link: int = 1, order: str = "<", kept: int = 1 << 16) -> bytes:
    content = struct.pack(f"{order}IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)
    for frame in frames:
        content += struct.pack(f"{order}IIII", 1, 2, min(kept, len(frame)), len(frame)) + frame[:kept]
    return content


def block(kind: int, body: bytes, order: str) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + size + body + size


def pcapng(frames: list[bytes], order: str = "<") -> bytes:
    content = block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)
    content += block(1, struct.pack(f"{order}HHI", 1, 0, 0), order)
    for frame in frames:
        head = struct.pack(f"{order}5I", 0, 0, 0, len(frame), len(frame))
        content += block(6, head + frame, order) + block(5, bytes(12), order)
    return content + block(3, struct.pack(f"{order}I", len(frames[0])) + frames[0], order)


# --- descriptions


def test_nothing_said_is_a_syn_at_ingress_of_the_only_interface(client: ApiClient) -> None:
    answer = ask(client)
    assert answer == {
        "hook": "ingress",
        "interface": "eth0",
        "verdict": "pass",
        "reason": "default",
        "rule": None,
        "also_matched": [],
        "also_matched_total": 0,
        "consistent": True,
        "packet": {
            "family": "ipv4",
            "source": "192.0.2.1",
            "destination": "198.51.100.1",
            "protocol": "tcp",
            "source_port": 49152,
            "destination_port": 49152,
            "tcp_flags": ["syn"],
            "icmp_type": None,
            "fragment": "none",
            "length": 80,
        },
        "notes": [],
    }


def test_the_winner_and_the_others_in_winning_order(client: ApiClient) -> None:
    add(client, id="net", sources=["203.0.113.0/24"], priority=50)
    add(client, id="ssh", action="allow", protocols=["tcp"], destination_ports=[22], priority=10)
    add(client, id="watch", sources=["203.0.113.7"], mode="observe", priority=5)
    add(client, id="late", protocols=["tcp"], priority=60)
    add(client, id="other", protocols=["udp"], priority=1)
    answer = ask(client, source="203.0.113.7", protocol="tcp", destination_port=22)
    assert (answer["verdict"], answer["reason"], answer["consistent"]) == ("pass", "rule", True)
    assert answer["rule"] == {"id": "ssh", "action": "allow", "priority": 10, "mode": "enforce"}
    assert [(each["id"], each["mode"]) for each in answer["also_matched"]] == [
        ("watch", "observe"),
        ("net", "enforce"),
        ("late", "enforce"),
    ]


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        (
            {"source": "2001:db8::7"},
            {"family": "ipv6", "source": "2001:db8::7", "destination": "2001:db8::2"},
        ),
        ({"destination": "10.0.0.1"}, {"family": "ipv4", "destination": "10.0.0.1", "source": "192.0.2.1"}),
        ({"protocol": "udp", "source_port": "53"}, {"protocol": "udp", "source_port": 53, "tcp_flags": None}),
        ({"protocol": 132, "destination_port": 9}, {"protocol": "sctp", "destination_port": 9}),
        ({"tcp_flags": ["syn", "ack"]}, {"tcp_flags": ["syn", "ack"]}),
        ({"tcp_flags": []}, {"tcp_flags": []}),
        ({"icmp_type": "3/1"}, {"protocol": "icmp", "icmp_type": "3/1"}),
        ({"icmp_type": 128, "source": "::1"}, {"protocol": "icmpv6", "icmp_type": "128/0"}),
        ({"protocol": "icmpv6"}, {"family": "ipv6", "icmp_type": "128/0"}),
        ({"protocol": "gre"}, {"protocol": "gre", "source_port": None}),
        ({"fragment": "first", "destination_port": 22}, {"fragment": "first", "destination_port": 22}),
        ({"fragment": "later", "destination_port": 22}, {"fragment": "later", "destination_port": None}),
        ({"fragment": "later", "source": "::1"}, {"family": "ipv6", "fragment": "later", "protocol": "tcp"}),
        (
            {"fragment": "first", "source": "::1"},
            {"family": "ipv6", "fragment": "first", "source_port": 49152},
        ),
    ],
    ids=str,
)
def test_a_description_is_read_back_as_it_was_meant(
    client: ApiClient, fields: dict[str, Any], read: dict[str, Any]
) -> None:
    packet = ask(client, **fields)["packet"]
    assert {name: packet[name] for name in read} == read


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"source": "10.0.0.0/8"}, "/source"),
        ({"source": "10.0.0.1", "destination": "::1"}, "/destination"),
        ({"protocol": "nosuch"}, "/protocol"),
        ({"protocol": "gre", "source_port": 1}, "/source_port"),
        ({"destination_port": 65536}, "/destination_port"),
        ({"destination_port": "80-90"}, "/destination_port"),
        ({"protocol": "udp", "tcp_flags": ["syn"]}, "/tcp_flags"),
        ({"tcp_flags": ["sin"]}, "/tcp_flags"),
        ({"protocol": "tcp", "icmp_type": 8}, "/icmp_type"),
        ({"fragment": "middle"}, "/fragment"),
        ({"hook": "input"}, "/hook"),
        ({"interface": 7}, "/interface"),
        ({"link": "ip"}, "/link"),
        ({"colour": "red"}, "/colour"),
        ({"frame": "zz"}, "/frame"),
        ({"frame": ""}, "/frame"),
        ({"frame": "45", "link": "tun"}, "/link"),
        ({"frame": "45", "source": "10.0.0.1"}, "/source"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_with_its_place(
    client: ApiClient, fields: dict[str, Any], pointer: str
) -> None:
    problem = refused(client, 422, **fields)
    assert problem["code"] == "invalid_packet"
    assert [each["pointer"] for each in problem["errors"]] == [pointer]


def test_an_interface_that_is_not_protected_is_not_found(client: ApiClient) -> None:
    problem = refused(client, 404, interface="eth1")
    assert problem["code"] == "interface_not_found"
    assert "eth0" in problem["detail"] and "PUT /v1/interfaces/eth1" in problem["hint"]


def test_of_several_interfaces_one_must_be_named(client: ApiClient) -> None:
    assert client("PUT", "/v1/interfaces/eth1", {}).status_code == 200
    problem = refused(client, 422)
    assert problem["errors"][0]["pointer"] == "/interface" and "eth0, eth1" in problem["detail"]
    assert ask(client, interface="eth1")["interface"] == "eth1"


def test_a_hook_that_is_not_attached_is_judged_and_said(client: ApiClient) -> None:
    assert client("PUT", "/v1/interfaces/eth0", {"egress": False}).status_code == 200
    assert ask(client)["notes"] == []
    assert ["egress of eth0 is not attached" in note for note in ask(client, hook="egress")["notes"]] == [
        True
    ]


def test_an_interface_without_ethernet_gets_packets_without(client: ApiClient) -> None:
    assert client("PUT", "/v1/interfaces/wg0", {}).status_code == 200
    answer = ask(client, interface="wg0", source="10.1.2.3")
    assert (answer["packet"]["source"], answer["packet"]["length"]) == ("10.1.2.3", 66)


def test_maps_that_name_another_winner_than_the_rules_are_told(world: tuple[ApiClient, MemoryKernel]) -> None:
    client, kernel = world
    add(client, id="gone", sources=["203.0.113.7"])
    assert ask(client, source="203.0.113.7")["consistent"] is True
    kernel.entries.clear()
    answer = ask(client, source="203.0.113.7")
    assert (answer["verdict"], answer["reason"], answer["rule"]) == ("pass", "default", None)
    assert answer["consistent"] is False and "different winners" in answer["notes"][0]
    assert [each["id"] for each in answer["also_matched"]] == ["gone"]


# --- frames


@pytest.mark.parametrize("text", ["{}", "0x{}", "{} "])
def test_a_frame_in_hex(client: ApiClient, text: str) -> None:
    add(client, id="dns", protocols=["udp"], destination_ports=[53])
    frame = udp(source="192.0.2.9", dport=53)
    answer = ask(client, frame=text.format(frame.hex()))
    assert (answer["verdict"], answer["rule"]["id"]) == ("drop", "dns")
    assert ask(client, frame=frame.hex(":"))["rule"]["id"] == "dns"
    assert ask(client, frame=frame[14:].hex(), link="ip")["rule"]["id"] == "dns"


def test_frames_that_rules_are_not_asked_about(client: ApiClient) -> None:
    add(client, id="all", priority=0)
    arp = ask(client, frame=(bytes(12) + b"\x08\x06" + bytes(28)).hex())
    assert (arp["verdict"], arp["reason"], arp["rule"], arp["packet"]) == ("pass", "not_ip", None, None)
    cut = ask(client, frame=tcp()[:40].hex())
    assert (cut["verdict"], cut["reason"], cut["also_matched"]) == ("drop", "malformed_ipv4", [])
    assert cut["consistent"] is True


def test_a_frame_may_be_as_long_as_a_packet_can_be(client: ApiClient) -> None:
    assert refused(client, 413, frame="00" * 70_000)["code"] == "frame_too_long"


def test_a_body_must_be_an_object(client: ApiClient) -> None:
    assert client("POST", "/v1/test", [1]).json()["code"] == "invalid_body"
    assert client("POST", "/v1/test", content=b"{").json()["code"] == "invalid_json"


def test_a_json_body_takes_no_query(client: ApiClient) -> None:
    response = client("POST", "/v1/test?hook=egress", {})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_query")


# --- captures


def send(
    client: ApiClient, content: bytes, query: str = "", kind: str = "application/vnd.tcpdump.pcap"
) -> Any:
    return client("POST", f"/v1/test{query}", content=content, headers={"Content-Type": kind})


@pytest.mark.parametrize(
    "content",
    [
        pcap([tcp(dport=22), tcp(dport=80)]),
        pcap([tcp(dport=22), tcp(dport=80)], order=">"),
        pcapng([tcp(dport=22), tcp(dport=80)]),
        pcapng([tcp(dport=22), tcp(dport=80)], order=">"),
        pcap([tcp(dport=22)[14:], tcp(dport=80)[14:]], link=101),
        pcap([bytes(14) + b"\x08\x00" + tcp(dport=port)[14:] for port in (22, 80)], link=113),
        pcap([b"\x08\x00" + bytes(18) + tcp(dport=port)[14:] for port in (22, 80)], link=276),
    ],
    ids=["pcap", "pcap-big-endian", "pcapng", "pcapng-big-endian", "raw", "cooked", "cooked2"],
)
def test_every_packet_of_a_capture_is_judged(client: ApiClient, content: bytes) -> None:
    add(client, id="ssh", protocols=["tcp"], destination_ports=[22])
    answer = send(client, content).json()
    found = [
        (each["number"], each["verdict"], each["rule"] and each["rule"]["id"]) for each in answer["items"]
    ]
    assert found[:2] == [(1, "drop", "ssh"), (2, "pass", None)]
    assert (answer["total"], answer["truncated"]) == (len(found), False)


def test_the_hook_and_interface_of_a_capture_stand_in_the_query(client: ApiClient) -> None:
    add(client, id="out", direction="egress", protocols=["tcp"])
    content = pcap([tcp()] * 5)
    query = "?hook=egress&interface=eth0&limit=3"
    answer = send(client, content, query, "application/octet-stream").json()
    assert [each["rule"]["id"] for each in answer["items"]] == ["out"] * 3
    assert (answer["total"], answer["truncated"]) == (3, True)


def test_a_packet_that_was_cut_by_the_capture_is_judged_as_it_was_on_the_wire(client: ApiClient) -> None:
    answer = send(client, pcap([tcp() + bytes(1000)], kept=20)).json()["items"][0]
    assert "only 20 of the frame's 1054 bytes" in answer["notes"][0]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"no capture at all", pcap([]), pcap([tcp()])[:-3], pcap([tcp()], link=105), pcapng([tcp()])[:-2],
        block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1), "<") + block(6, bytes(20), "<"),
    ],
    ids=["empty", "text", "no-packets", "cut", "wlan", "cut-ng", "no-interface"],
)  # fmt: skip
def test_what_is_no_capture_is_refused(client: ApiClient, content: bytes) -> None:
    response = send(client, content)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_capture")


def test_other_bodies_are_refused(client: ApiClient) -> None:
    assert send(client, b"x", kind="text/plain").status_code == 415


# --- observe


def test_promoting_makes_a_rule_decide(client: ApiClient) -> None:
    add(client, id="try", sources=["203.0.113.7"], mode="observe")
    assert client("GET", "/v1/rules/try").json()["mode"] == "observe"
    assert ask(client, source="203.0.113.7")["verdict"] == "pass"
    promoted = client("POST", "/v1/rules/try/promote")
    assert (promoted.status_code, promoted.json()["mode"]) == (200, "enforce")
    assert ask(client, source="203.0.113.7")["rule"]["id"] == "try"
    assert client("POST", "/v1/rules/try/promote").json() == promoted.json()
    assert client("POST", "/v1/rules/none/promote").status_code == 404


def test_mode_can_be_patched_and_exported(client: ApiClient) -> None:
    add(client, id="a", sources=["203.0.113.7"])
    assert client("PATCH", "/v1/rules/a", {"mode": "observe"}).json()["mode"] == "observe"
    assert ask(client, source="203.0.113.7")["verdict"] == "pass"
    exported = client("GET", "/v1/ruleset").json()
    assert [each["mode"] for each in exported["rules"]] == ["observe"]
    assert client("PUT", "/v1/ruleset", exported).json()["unchanged"] == 1
    assert client("PATCH", "/v1/rules/a", {"mode": None}).json()["mode"] == "enforce"
    assert client("PATCH", "/v1/rules/a", {"mode": "watch"}).status_code == 422
