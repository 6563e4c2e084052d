"""The life of the process: sockets, starting, systemd's messages, signals, what it leaves.

The kernel is in memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.listeners import listening
from api.running import Running
from api.server import _save_uses_of_tokens
from api.systemd import notify
from firewall.errors import Conflict
from tests.unit.host import Host, wait_for

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0


class Service:
    """One process, its socket and what it tells systemd."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "run" / "api.sock"
        self.config = directory / "config.toml"
        self.config.write_text(
            f'[api]\nlisten = ["unix:{self.socket}", "127.0.0.1:0"]\n'
            f'[state]\ndirectory = "{directory}/state"\n'
        )
        self._log = directory / "log"
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.told.bind(str(directory / "notify"))
        self.told.settimeout(PATIENCE_S)
        self._environment = {**os.environ, "NOTIFY_SOCKET": str(directory / "notify")}
        self.process: subprocess.Popen[bytes] | None = None
        limits = httpx.Limits(max_keepalive_connections=0)
        transport = httpx.HTTPTransport(uds=str(self.socket), limits=limits)
        self.http = httpx.Client(transport=transport, base_url="http://ebpf-fw", timeout=PATIENCE_S)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def launch(self, *trouble: str, **environment: str) -> None:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.api.service_process", str(self.config), *trouble],
                cwd=ROOT, env={**self._environment, **environment}, stdout=log, stderr=log,
            )  # fmt: skip

    def wait_for(self, path: str, status: int) -> httpx.Response:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            assert self.process is not None and self.process.poll() is None, self.log
            try:
                answer = self.http.get(path)
            except httpx.TransportError:
                time.sleep(0.02)
                continue
            if answer.status_code == status:
                return answer
            time.sleep(0.02)
        raise AssertionError(f"{path} never answered {status}: {self.log}")

    def start(self, *trouble: str, **environment: str) -> None:
        self.launch(*trouble, **environment)
        self.wait_for("/readyz", 200)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def status(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE_S)

    def hear(self) -> str:
        """What systemd is told next, but for a slow start's asking for time."""
        while "EXTEND_TIMEOUT_USEC" in (told := self.told.recv(4096).decode()):
            pass
        return told

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.http.close()
        self.told.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.close()


def tcp_port(log: str) -> int:
    found = re.search(r"127\.0\.0\.1:(\d+)", log)
    assert found, log
    return int(found[1])


# -- serving


def test_it_serves_on_every_address_until_sigterm_and_leaves_no_socket(service: Service) -> None:
    service.start()
    assert stat.S_IMODE(service.socket.stat().st_mode) == 0o660
    with httpx.Client(base_url=f"http://127.0.0.1:{tcp_port(service.log)}") as tcp:
        assert tcp.get("/healthz").json() == {"status": "alive"}
        assert tcp.get("/healthz", headers={"Host": "ebpf-fw"}).status_code == 421
    assert service.http.post("/v1/rules", json={"id": "a", "sources": "203.0.113.7"}).status_code == 201
    service.signal(signal.SIGTERM)
    assert service.status() == 0, service.log
    assert not service.socket.exists()


def test_rules_are_there_after_a_restart(service: Service) -> None:
    service.start()
    service.http.post("/v1/rules", json={"id": "a", "sources": "203.0.113.7"})
    service.signal(signal.SIGINT)
    assert service.status() == 0, service.log
    service.start()
    assert service.http.get("/v1/rules/a").json()["sources"] == ["203.0.113.7"]


def test_systemd_hears_ready_after_the_start_and_stopping_before_the_end(service: Service) -> None:
    service.start("start-is-slow")
    told = [service.hear() for _ in range(2)]
    assert "READY=1" not in told[0]
    assert told[1].splitlines() == ["READY=1", "STATUS=ready"]
    service.signal(signal.SIGTERM)
    assert "STOPPING=1" in service.hear()
    assert service.status() == 0


def test_while_it_starts_it_is_alive_and_not_ready(service: Service) -> None:
    service.launch("start-is-slow")
    assert service.wait_for("/readyz", 503).json()["code"] == "starting"
    assert service.http.get("/healthz").status_code == 200
    assert service.http.post("/v1/rules", json={}).json()["code"] == "starting"
    service.wait_for("/readyz", 200)


def test_sigterm_while_it_starts_ends_it_after_the_start(service: Service) -> None:
    service.launch("start-is-slow")
    service.wait_for("/healthz", 200)
    service.signal(signal.SIGTERM)
    assert service.status() == 0, service.log
    assert not service.socket.exists()


def reloaded(service: Service, more: str) -> None:
    """SIGHUP with more in the config; returns when systemd has heard of the end."""
    service.config.write_text(service.config.read_text() + more)
    service.signal(signal.SIGHUP)
    while "READY=1" not in service.hear():
        pass  # STATUS, READY of the start
    while "RELOADING=1" not in service.hear():
        pass
    assert service.hear().startswith("READY=1")


def test_sighup_reads_the_config_again_and_names_what_needs_a_restart(service: Service) -> None:
    service.start()
    more = '[filter]\ndefault_ingress = "drop"\n[bpf]\nmax_rules = 64\n[[interfaces]]\nname = "eth*"\n'
    reloaded(service, more)
    assert service.http.get("/v1/status").json()["default_actions"]["ingress"] == "drop"
    assert [each["name"] for each in service.http.get("/v1/interfaces").json()["items"]] == ["eth0", "eth1"]
    assert "filter.default_ingress, interfaces" in service.log
    [waiting] = [line for line in service.log.splitlines() if "need a restart" in line]
    assert "bpf.max_rules" in waiting and "systemctl restart" in waiting
    maps = {each["name"]: each["capacity"] for each in service.http.get("/v1/status").json()["maps"]}
    assert maps["policy_rules"] == 4096


@pytest.mark.parametrize("more", ["[filter]\nfragments = 1\n", "[filter\n", "[surprise]\n"])
def test_a_broken_config_changes_nothing(service: Service, more: str) -> None:
    service.start()
    before = service.http.get("/v1/interfaces").json()
    reloaded(service, f'{more}[[interfaces]]\nname = "eth0"\n')
    assert service.http.get("/v1/interfaces").json() == before
    assert "all goes on as before" in service.log and str(service.config) in service.log
    assert "Traceback" not in service.log


def test_the_log_level_of_the_config_holds_and_can_be_changed(service: Service) -> None:
    service.config.write_text(service.config.read_text() + '[service]\nlog_level = "error"\n')
    service.start()
    assert "started" not in service.log and "listening" not in service.log
    service.config.write_text(service.config.read_text().replace('"error"', '"info"'))
    reloaded(service, "")
    assert "config read again" in service.log and "service.log_level" in service.log


def test_a_change_under_way_is_finished_and_answered(service: Service) -> None:
    service.start("change-is-slow")
    answers: list[int] = []

    def add() -> None:
        answers.append(service.http.post("/v1/rules", json={"id": "a", "sources": "::1"}).status_code)

    adding = threading.Thread(target=add)
    adding.start()
    time.sleep(0.5)
    service.signal(signal.SIGTERM)
    assert service.status() == 0, service.log
    adding.join()
    assert answers == [201]
    service.start()
    assert service.http.get("/v1/rules/a").status_code == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_read(service: Service) -> None:
    service.start()
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(PATIENCE_S)
        raw.connect(str(service.socket))
        raw.sendall(b"POST /v1/rules HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        answer = raw.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")


def test_uses_of_tokens_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never for a request's sake."""
    monkeypatch.setattr("api.server.USED_WITHIN_S", 0.01)
    host = Host(tmp_path)
    host.start()
    try:
        host.firewall.token_of(host.firewall.create_token("ci", "read", None).text)
        assert host.firewall.uses_to_save()

        async def live() -> None:
            running = Running(host.firewall, "running")
            saving = asyncio.create_task(_save_uses_of_tokens(running))
            await asyncio.to_thread(wait_for, lambda: not host.firewall.uses_to_save(), PATIENCE_S)
            saving.cancel()
            running.close()

        asyncio.run(live())
    finally:
        host.stop()


# -- what goes wrong


@pytest.mark.parametrize(
    ("trouble", "words"),
    [("start-fails", ["EPERM", "run it as root"]), ("start-is-rejected", ["R1 invalid mem access"])],
)
def test_a_start_that_fails_is_logged_with_its_cause_and_is_status_1(
    service: Service, trouble: str, words: list[str]
) -> None:
    service.launch(trouble)
    assert service.status() == 1
    assert all(word in service.log for word in words), service.log
    assert not service.socket.exists()


def test_a_second_instance_ends_at_once_and_the_first_goes_on(service: Service, tmp_path: Path) -> None:
    service.start()
    command = [sys.executable, "-m", "tests.api.service_process", str(service.config)]
    second = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert second.returncode == 1
    assert f"ebpf-fw: cannot listen on unix:{service.socket}" in second.stderr
    assert "Traceback" not in second.stderr
    assert service.http.get("/readyz").status_code == 200


def test_the_socket_of_a_killed_service_is_no_obstacle(service: Service) -> None:
    service.start()
    service.signal(signal.SIGKILL)
    service.status()
    assert service.socket.exists()
    service.start()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[api]\nlisten = '0.0.0.0:80'\n", "authentication"),
        ("[filter]\nfragment = 'drop'\n", "filter.fragment"),
    ],
)
def test_a_wrong_config_is_status_2_and_names_the_key(service: Service, content: str, words: str) -> None:
    service.config.write_text(content)
    service.launch()
    assert service.status() == 2
    assert service.log.startswith("ebpf-fw: ")
    assert words in service.log
    assert "hint: " in service.log
    assert not service.socket.exists()


def test_the_log_is_json_where_that_is_asked_for(service: Service) -> None:
    service.start(EBPF_FW_LOG="json")
    events = [json.loads(line) for line in service.log.splitlines()]
    assert "started" in [event["event"] for event in events]
    assert all({"event", "level", "timestamp"} <= event.keys() for event in events)


# -- the parts


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("mine")
    with pytest.raises(Conflict, match="no socket"), listening([f"unix:{path}"]):
        pass
    assert path.read_text() == "mine"


def test_if_one_address_cannot_be_had_the_others_are_given_back(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match="EADDRINUSE"), listening([f"unix:{path}", f"127.0.0.1:{port}"]):
            pass
    assert not path.exists()


def test_the_socket_of_a_successor_stays(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with listening([f"unix:{path}"]):
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    assert path.exists()
    successor.close()


def test_notify_knows_abstract_sockets_and_survives_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ebpf-fw-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("READY=1", "STATUS=x")
        assert systemd.recv(100) == b"READY=1\nSTATUS=x"
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "")
    notify("READY=1")
