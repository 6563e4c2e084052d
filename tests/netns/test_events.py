"""Packets that are dropped on the wire, told by the real service: events, captures, their rules and reasons."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.utils import PcapNgReader

from tests.netns.conftest import MakeWorld
from tests.netns.daemon import PROGRAM
from tests.netns.world import World
from tests.unit.host import wait_for

PATIENCE_S = 20.0
DROP_UDP = {"id": "no-udp", "protocols": ["udp"], "destination_ports": ["7000"], "direction": "both"}


class Stream:
    """A request whose answer goes on, read by a thread. It listens when this is made."""

    def __init__(self, world: World, path: str) -> None:
        transport = httpx.HTTPTransport(uds=str(world.daemon.socket))
        self._client = httpx.Client(transport=transport, base_url="http://ebpf-fw", timeout=None)
        self._answer = self._client.send(self._client.build_request("GET", path), stream=True)
        assert self._answer.status_code == 200
        self.content = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(httpx.TransportError):  # the service was killed
            for chunk in self._answer.iter_raw():
                self.content += chunk

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = self.content.decode().rpartition("\n")[0].splitlines()
        found = [orjson.loads(line.removeprefix("data: ")) for line in lines if "{" in line]
        return [each for each in found if "time" in each]

    def end(self) -> bytes:
        """Waits for the end of the answer."""
        self._reader.join(PATIENCE_S)
        assert not self._reader.is_alive()
        self._client.close()
        return self.content


@contextmanager
def command(world: World, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command line as a person runs it."""
    process = subprocess.Popen(
        [str(PROGRAM), "--url", f"unix:{world.daemon.socket}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def add(world: World, **rule: Any) -> None:
    assert world.api.post("/v1/rules", json=rule).status_code == 201


def listeners(world: World) -> float:
    lines = world.api.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("ebpf_fw_report_listeners ")).split()[1])


def frame(world: World, port: int = 7000, size: int = 100) -> bytes:
    """From the peer to the protected end."""
    link = world.link
    packet = Ether(dst="ff:ff:ff:ff:ff:ff") / IP(src=link.peer_address(4), dst=link.address(4))
    return bytes(packet / UDP(sport=6000, dport=port) / bytes(each % 251 for each in range(size - 42)))


def test_a_packet_dropped_on_the_wire_is_told_alike_everywhere(world: World) -> None:
    assert world.udp_echo(7000)
    server_sent, lines = Stream(world, "/v1/events"), Stream(world, "/v1/events?format=ndjson")
    capture = Stream(world, "/v1/capture?limit=1")
    with command(world, "events", "--json") as cli:
        wait_for(lambda: listeners(world) == 4, PATIENCE_S)
        add(world, **DROP_UDP)
        sent = frame(world)
        world.send_frame(sent)
        assert cli.stdout is not None
        told = orjson.loads(cli.stdout.readline())
        cli.send_signal(signal.SIGINT)
        assert (cli.wait(PATIENCE_S), cli.stderr.read() if cli.stderr else b"") == (0, b"")
    wait_for(lambda: server_sent.events and lines.events, PATIENCE_S)
    (event,) = lines.events
    assert server_sent.events == [event] and told == event
    assert {name: event[name] for name in ("rule", "reason", "verdict", "hook", "interface", "length")} == {
        "rule": "no-udp", "reason": "rule", "verdict": "drop", "hook": "ingress",
        "interface": world.link.interface, "length": len(sent),
    }  # fmt: skip
    assert (event["source"], event["source_port"]) == (world.link.peer_address(4), 6000)
    assert (event["destination"], event["destination_port"], event["protocol"]) == (
        world.link.address(4), 7000, "udp",
    )  # fmt: skip
    (packet,) = PcapNgReader(io.BytesIO(capture.end()))
    assert bytes(packet) == sent
    assert packet.comments == [b"rule=no-udp reason=rule verdict=drop"]
    assert (packet.sniffed_on, packet.direction) == (world.link.interface, 1)
    assert world.api.get("/v1/rules/no-udp").json()["stats"]["packets"] == 1
    question = {"hook": "ingress", "interface": world.link.interface, "frame": sent.hex()}
    answer = world.api.post("/v1/test", json=question).json()
    assert (answer["verdict"], answer["reason"], answer["rule"]["id"]) == ("drop", "rule", "no-udp")
    assert world.api.get("/v1/rules/no-udp").json()["stats"]["packets"] == 1
    assert world.stop() == 0
    assert server_sent.end() and lines.end()


def test_drops_at_egress_and_reasons_without_a_rule_are_told(make_world: MakeWorld) -> None:
    world = make_world(filter={"fragments": "drop"})
    add(world, **DROP_UDP)
    stream = Stream(world, "/v1/events?format=ndjson")
    assert not world.udp_echo(7000, outward=True)
    wait_for(lambda: len(stream.events) == 1, PATIENCE_S)
    link = world.link
    fragment = Ether(dst="ff:ff:ff:ff:ff:ff") / IP(src=link.peer_address(4), dst=link.address(4), flags="MF")
    world.send_frame(bytes(fragment / UDP(sport=1, dport=2) / bytes(16)))
    wait_for(lambda: len(stream.events) == 2, PATIENCE_S)
    egress, cut = stream.events
    assert (egress["hook"], egress["rule"], egress["destination"]) == (
        "egress",
        "no-udp",
        link.peer_address(4),
    )
    assert (cut["hook"], cut["rule"], cut["reason"]) == ("ingress", None, "fragment")
    assert world.stop() == 0
    stream.end()


def test_a_capture_of_all_packets_has_both_directions_and_what_is_not_ip(
    world: World, tmp_path: Path
) -> None:
    file = tmp_path / "all.pcapng"
    with command(world, "capture", "--all", "--seconds", "20", "-n", "5", "-w", str(file)) as cli:
        wait_for(lambda: listeners(world) == 1, PATIENCE_S)
        # First, for a host says more than it is asked: others may be among the five.
        world.send_frame(bytes(Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="10.99.99.99")))
        assert world.ping(count=2) == 2
        assert cli.wait(PATIENCE_S) == 0
    packets = list(PcapNgReader(str(file)))
    assert len(packets) == 5
    assert {each.direction for each in packets} == {1, 2}
    ways = {(each[IP].src, each.direction) for each in packets if IP in each}
    assert {(world.link.peer_address(4), 1), (world.link.address(4), 2)} <= ways
    assert {each.comments[0] for each in packets if IP in each} == {b"reason=default verdict=pass"}
    assert b"reason=not_ip verdict=pass" in {each.comments[0] for each in packets}


def test_a_capture_pipes_into_a_reader_packet_by_packet(world: World) -> None:
    add(world, **DROP_UDP)
    with command(world, "capture", "--rule", "no-udp") as cli:
        wait_for(lambda: listeners(world) == 1, PATIENCE_S)
        assert cli.stdout is not None
        reader = PcapNgReader(cli.stdout)
        for size in (100, 1400, 60):
            sent = frame(world, size=size)
            world.send_frame(sent)
            assert bytes(reader.read_packet()) == sent  # before the next is sent
        cli.send_signal(signal.SIGINT)
        assert cli.wait(PATIENCE_S) == 0


def test_a_capture_is_read_by_tshark_where_it_is_installed(world: World, tmp_path: Path) -> None:
    """Where not, the same fields were read by scapy above, and here its first block is looked at."""
    add(world, **DROP_UDP)
    capture = Stream(world, "/v1/capture?limit=1")
    world.send_frame(frame(world))
    content = capture.end()
    assert content.startswith(b"\x0a\x0d\x0d\x0a")
    tshark = shutil.which("tshark")
    if tshark is None:
        return
    file = tmp_path / "one.pcapng"
    file.write_bytes(content)
    fields = ["frame.comment", "frame.interface_name", "udp.dstport", "frame.p2p_dir"]
    options = [part for field in fields for part in ("-e", field)]
    done = subprocess.run(
        [tshark, "-r", str(file), "-T", "fields", *options], capture_output=True, text=True, check=True
    )
    comment, interface, port, _ = done.stdout.rstrip("\n").split("\t")
    assert (comment, interface, port) == (
        "rule=no-udp reason=rule verdict=drop", world.link.interface, "7000",
    )  # fmt: skip


def test_under_a_flood_events_are_limited_and_the_rest_is_counted(make_world: MakeWorld) -> None:
    world = make_world(events={"rate": 20, "burst": 20})
    add(world, **DROP_UDP)
    stream = Stream(world, "/v1/events?format=ndjson")
    began = time.monotonic()
    with world.flood(frame(world), pause_s=0) as flood:
        wait_for(lambda: b'{"suppressed":' in stream.content and len(stream.events) > 5, PATIENCE_S)
    lasted = time.monotonic() - began
    assert not flood.passed
    cpus = len([line for line in Path("/proc/stat").read_text().splitlines() if line[3:4].isdecimal()])
    assert len(stream.events) <= cpus * (20 + 20 * (lasted + 1))
    assert world.stop() == 0
    stream.end()


def test_with_nobody_listening_nothing_is_reported_and_a_killed_service_leaves_no_listener(
    world: World,
) -> None:
    add(world, **DROP_UDP)
    total = 'ebpf_fw_reports_total{stream="events"}'

    def reported() -> float:
        lines = world.api.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(total)).rpartition(" ")[2])

    assert not world.udp_echo(7000)
    assert reported() == 0
    stream = Stream(world, "/v1/events?format=ndjson")
    assert not world.udp_echo(7000)
    wait_for(lambda: reported() == 1, PATIENCE_S)
    world.kill9()
    world.start()
    assert listeners(world) == 0
    assert not world.udp_echo(7000)
    again = Stream(world, "/v1/events?format=ndjson")
    assert not world.udp_echo(7000)
    wait_for(lambda: len(again.events) == 1, PATIENCE_S)
    assert reported() == 1
    assert len(stream.events) == 1
    assert world.stop() == 0
    again.end()


def test_drops_are_written_to_the_log_with_the_number_of_those_that_are_not(make_world: MakeWorld) -> None:
    world = make_world(events={"log_drops": True, "log_rate": 3})
    add(world, **DROP_UDP)
    with world.flood(frame(world)):
        wait_for(lambda: "dropped more" in world.daemon.log, PATIENCE_S)
    lines = [line for line in world.daemon.log.splitlines() if " dropped " in line and "reason=rule" in line]
    assert lines and "rule=no-udp" in lines[0] and "hook=ingress" in lines[0]
    assert "destination_port=7000" in lines[0]
