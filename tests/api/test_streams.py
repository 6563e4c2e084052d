"""Answers that go on, over real sockets: readers that are slow, that leave, and a service that stops.

The kernel is in memory; it drops some thousand packets a second.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.api.test_server import PATIENCE_S, ROOT, Service
from tests.unit.host import wait_for


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    made.start("drops")
    yield made
    made.close()


def metric(service: Service, name: str) -> float:
    lines = service.http.get("/metrics").text.splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(name)))


def ask(service: Service, path: str) -> socket.socket:
    """A client that sends a request and reads only what it is told to."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE_S)
    client.connect(str(service.socket))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return client


def test_a_slow_reader_loses_events_and_no_other_waits_for_it(service: Service) -> None:
    with ask(service, "/v1/events?format=ndjson") as slow:
        lost = 'ebpf_fw_reports_lost_by_listeners_total{stream="events"}'
        wait_for(lambda: metric(service, lost) > 0, PATIENCE_S)
        assert service.http.post("/v1/rules", json={"sources": "203.0.113.9"}).status_code == 201
        with service.http.stream("GET", "/v1/events?format=ndjson") as quick:
            events = (orjson.loads(line) for line in quick.iter_lines())
            seen = [next(events) for _ in range(5000)]
        assert not any("lost" in each for each in seen)
        received = b""
        while b'{"lost":' not in received:
            received = received[-100:] + slow.recv(1 << 16)
        assert slow.recv(1 << 16)


@pytest.mark.parametrize("path", ["/v1/events", "/v1/events?format=ndjson", "/v1/capture?all=true"])
def test_a_client_that_leaves_is_a_listener_no_more(service: Service, path: str) -> None:
    with service.http.stream("GET", path) as response:
        chunks = response.iter_raw()
        next(chunks)
        assert metric(service, "ebpf_fw_report_listeners") == 1
    wait_for(lambda: metric(service, "ebpf_fw_report_listeners") == 0, PATIENCE_S)


def test_a_client_that_listens_to_what_never_comes_leaves_too(service: Service) -> None:
    client = ask(service, "/v1/events?format=ndjson&address=192.0.2.1")
    wait_for(lambda: metric(service, "ebpf_fw_report_listeners") == 1, PATIENCE_S)
    client.close()
    wait_for(lambda: metric(service, "ebpf_fw_report_listeners") == 0, PATIENCE_S)


def test_streams_end_at_once_when_the_service_stops(service: Service) -> None:
    with (
        ask(service, "/v1/events?address=192.0.2.1") as silent,
        ask(service, "/v1/capture?address=192.0.2.1") as capture,
        service.http.stream("GET", "/v1/events?format=ndjson") as busy,
    ):
        lines = busy.iter_lines()
        next(lines)
        wait_for(lambda: metric(service, "ebpf_fw_report_listeners") == 3, PATIENCE_S)
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        for client in (silent, capture):
            while client.recv(1 << 16):
                pass
        for _ in lines:
            pass
        assert service.status() == 0
        assert time.monotonic() - began < 3


def test_a_client_that_does_not_read_does_not_hold_up_the_end_for_long(service: Service) -> None:
    with ask(service, "/v1/events?format=ndjson"):
        lost = 'ebpf_fw_reports_lost_by_listeners_total{stream="events"}'
        wait_for(lambda: metric(service, lost) > 0, PATIENCE_S)
        service.signal(signal.SIGTERM)
        assert service.status() == 0


def test_drops_are_logged_where_the_config_says_so_and_after_a_reload_no_more(service: Service) -> None:
    before = service.config.read_text()
    service.config.write_text(before + "[events]\nlog_drops = true\nlog_rate = 2\n")
    service.signal(signal.SIGHUP)
    wait_for(lambda: "dropped more" in service.log, PATIENCE_S)
    line = next(each for each in service.log.splitlines() if " dropped " in each)
    assert "source=10.0.0.2" in line and "reason=rule" in line and "hook=ingress" in line
    service.config.write_text(before)
    service.signal(signal.SIGHUP)
    wait_for(lambda: metric(service, "ebpf_fw_report_listeners") == 0, PATIENCE_S)
    assert service.log.count(" dropped more") < service.log.count("reason=rule")


# -- the command line


def cli(service: Service, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli", "--url", f"unix:{service.socket}", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": ""}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )  # fmt: skip


def test_ctrl_c_ends_events_cleanly(service: Service) -> None:
    with cli(service, "events", "--json") as command:
        assert command.stdout is not None and command.stderr is not None
        assert orjson.loads(command.stdout.readline())["source"] == "10.0.0.2"
        command.send_signal(signal.SIGINT)
        command.stdout.read()
        assert (command.wait(PATIENCE_S), command.stderr.read()) == (0, b"")


def test_events_are_lines_for_people(service: Service) -> None:
    with cli(service, "events", "--address", "10.0.0.0/8") as command:
        assert command.stdout is not None
        head, event = command.stdout.readline().split(), command.stdout.readline().split()
        assert head[:4] == [b"TIME", b"HOOK", b"INTERFACE", b"RULE"]
        assert event[1:2] + event[3:] == [
            b"ingress", b"-", b"rule", b"udp", b"10.0.0.2:40000", b"10.0.0.1:53", b"100",
        ]  # fmt: skip
        command.send_signal(signal.SIGINT)
        command.stdout.read()


def test_events_say_that_the_service_ended_them(service: Service) -> None:
    with cli(service, "events", "--address", "192.0.2.1") as command:
        wait_for(lambda: metric(service, "ebpf_fw_report_listeners") == 1, PATIENCE_S)
        service.signal(signal.SIGTERM)
        assert command.stderr is not None
        assert command.wait(PATIENCE_S) == 3
        assert b"Traceback" not in command.stderr.read()


def test_a_capture_flows_into_a_pipe_and_ends_with_its_reader(service: Service) -> None:
    with cli(service, "capture") as command:
        assert command.stdout is not None and command.stderr is not None
        assert command.stdout.read(4) == b"\x0a\x0d\x0d\x0a"
        command.stdout.read(10_000)
        command.stdout.close()
        assert command.wait(PATIENCE_S) == 141
        assert command.stderr.read() == b""


def test_ctrl_c_ends_a_capture_cleanly(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "dropped.pcapng"
    with cli(service, "capture", "-w", str(file)) as command:
        wait_for(lambda: file.exists() and file.stat().st_size > 10_000, PATIENCE_S)
        command.send_signal(signal.SIGINT)
        assert command.stderr is not None
        assert (command.wait(PATIENCE_S), command.stderr.read()) == (0, b"")


def test_a_capture_ends_at_its_limit(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "dropped.pcapng"
    with cli(service, "capture", "-n", "3", "-w", str(file)) as command:
        assert command.wait(PATIENCE_S) == 0
    assert file.read_bytes().count(b"reason=rule verdict=drop") == 3


def test_a_capture_refuses_a_terminal(service: Service) -> None:
    ours, theirs = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "cli", "--url", f"unix:{service.socket}", "capture"],
        cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2
    assert b"wireshark" in done.stderr


def test_a_filter_that_is_refused_has_the_exit_code_of_a_refusal(service: Service) -> None:
    for arguments, code in ((("events", "--reason", "because"), 4), (("capture", "--rule", "nobody"), 12)):
        with cli(service, *arguments) as command:
            assert command.wait(PATIENCE_S) == code
