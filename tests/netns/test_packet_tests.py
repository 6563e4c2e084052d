"""Testing packets and rules that observe, on the wire: the real daemon, its command line, real traffic."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import wrpcap

from tests.netns.daemon import PROGRAM
from tests.netns.traffic import (
    PINGS,
    add_rule,
    assert_blocked,
    assert_passes,
    ethernet,
    frame,
    ip,
    packets_of,
    ping,
    tcp_to,
    udp,
    udp_to,
)
from tests.netns.world import World


@pytest.fixture
def world(shared_world: World) -> World:
    return shared_world


def ebpf_fw(world: World, *arguments: str, expect: int = 0) -> str:
    done = subprocess.run(
        [str(PROGRAM), "--config", str(world.daemon.configuration_path), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def ask(world: World, **fields: Any) -> dict[str, Any]:
    answer = world.api.post("/v1/test", json={"interface": world.link.interface, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def counters(world: World) -> Any:
    """Of what rules decided; neighbours are talked to all the time."""
    return [each for each in world.api.get("/v1/counters").json()["items"] if each["reason"] == "rule"]


def test_a_packet_that_is_asked_about_is_judged_as_the_one_on_the_wire(world: World) -> None:
    peer, own = world.link.peer_address(4), world.link.address(4)
    crafted = ethernet(world) / ip(world) / udp_to(5353)
    assert_passes([frame(world, crafted)], "before the rule")
    add_rule(
        world, id="mdns", sources=[f"{peer}/32"], protocols=["udp"], destination_ports=[5353], priority=10
    )
    add_rule(world, id="peer", sources=[peer], priority=20)
    assert_blocked([frame(world, crafted)], "with the rule")
    assert packets_of(world, "mdns") == 1
    before = counters(world)
    described = ask(world, source=peer, destination=own, protocol="udp", destination_port=5353)
    for answer in (described, ask(world, frame=bytes(crafted).hex())):
        assert (answer["verdict"], answer["reason"], answer["rule"]["id"]) == ("drop", "rule", "mdns")
        assert [each["id"] for each in answer["also_matched"]] == ["peer"]
        assert answer["consistent"] and answer["interface"] == world.link.interface and answer["notes"] == []
    assert packets_of(world, "mdns") == 1 and counters(world) == before


def test_the_command_line_tests_descriptions_frames_and_files(world: World, tmp_path: Path) -> None:
    add_rule(world, id="ssh", protocols=["tcp"], destination_ports=[22], direction="both")
    here = ("test", "--interface", world.link.interface)
    shown = ebpf_fw(world, *here, "--hook", "egress", "--destination-port", "22")
    assert "drop" in shown and "ssh (drop, priority 1000)" in shown and "egress of" in shown
    crafted = ethernet(world) / ip(world) / tcp_to(22)
    answer = json.loads(ebpf_fw(world, *here, "--json", "--frame", bytes(crafted).hex()))
    assert answer["rule"]["id"] == "ssh"
    file = tmp_path / "some.pcap"
    wrpcap(str(file), [crafted, ethernet(world) / ip(world, 6) / udp_to(53)])
    answers = json.loads(ebpf_fw(world, *here, "--json", "--pcap", str(file)))
    assert [(each["verdict"], each["packet"]["family"]) for each in answers["items"]] == [
        ("drop", "ipv4"),
        ("pass", "ipv6"),
    ]
    assert "ssh" in ebpf_fw(world, *here, "--pcap", str(file))
    ebpf_fw(world, "test", "--interface", "nosuch0", expect=12)
    ebpf_fw(world, *here, "--source", "10.0.0.0/8", expect=4)
    ebpf_fw(world, *here, "--pcap", str(file), "--source", "10.0.0.1", expect=2)


def test_a_rule_that_observes_counts_and_passes_until_it_is_promoted(world: World) -> None:
    peer = world.link.peer_address(4)
    ebpf_fw(world, "rule", "add", "--id", "try", "--source", peer, "--observe")
    assert "observes" in ebpf_fw(world, "rule", "list")
    assert_passes([ping(world)], "while the rule observes")
    stats = world.api.get("/v1/rules/try").json()["stats"]
    assert stats["packets"] == PINGS and stats["bytes"] > 0 and stats["last_hit"] is not None
    matched = ask(world, source=peer, icmp_type=8)["also_matched"]
    assert [(each["id"], each["mode"]) for each in matched] == [("try", "observe")]
    assert "promoted try: drop" in ebpf_fw(world, "rule", "promote", "try")
    assert_blocked([ping(world)], "after the promotion")
    assert packets_of(world, "try") == 2 * PINGS
    assert ask(world, source=peer, icmp_type=8)["rule"]["id"] == "try"


def test_what_an_observing_rule_would_drop_is_an_event(world: World) -> None:
    add_rule(world, id="watch", mode="observe", protocols=["udp"], destination_ports=[5353])
    with world.api.stream("GET", "/v1/events", params={"format": "sse", "rule": "watch"}) as stream:
        lines = stream.iter_lines()
        assert next(lines) == ": listening"
        assert_passes([udp(world, 5353)], "while the rule observes")
        event = json.loads(next(line for line in lines if line.startswith("data:")).removeprefix("data:"))
    assert (event["rule"], event["kind"], event["verdict"]) == ("watch", "observed", "drop")
    assert (event["destination_port"], event["source"]) == (5353, world.link.peer_address(4))
