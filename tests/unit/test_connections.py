"""Live connections as sock_diag tells them: of this process, over loopback, in the namespace that the tests run in."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from firewall.datapath import Connection
from firewall.kernel import connections
from firewall.kernel.connections import Connections, route_to

LOOPBACK4, LOOPBACK6 = 0x7F000001, 1


@contextmanager
def connected(
    family: int, listen: str, connect: str, client_family: int | None = None
) -> Iterator[tuple[int, int]]:
    """Ports of server and client."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((listen, 0))
        server.listen()
        client = stack.enter_context(socket.socket(client_family or family, socket.SOCK_STREAM))
        client.connect((connect, server.getsockname()[1]))
        stack.enter_context(server.accept()[0])
        yield server.getsockname()[1], client.getsockname()[1]


@pytest.mark.parametrize(
    ("version", "family", "listen", "connect", "address"),
    [
        (4, socket.AF_INET, "127.0.0.1", "127.0.0.1", LOOPBACK4),
        (6, socket.AF_INET6, "::1", "::1", LOOPBACK6),
    ],
)
def test_both_ends_of_a_connection_are_seen(
    version: int, family: int, listen: str, connect: str, address: int
) -> None:
    with connected(family, listen, connect) as (server, client):
        found = Connections().all()
        assert Connection(version, address, server, address, client) in found
        assert Connection(version, address, client, address, server) in found
    assert Connection(version, address, server, address, client) not in Connections().all()


def test_an_ipv4_client_of_an_ipv6_socket_is_an_ipv4_connection() -> None:
    with connected(socket.AF_INET6, "::", "127.0.0.1", socket.AF_INET) as (server, client):
        assert Connection(4, LOOPBACK4, server, LOOPBACK4, client) in Connections().all()


def test_connections_to_a_port_of_ssh_are_its_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(socket.AF_INET, "127.0.0.1", "127.0.0.1") as (server, client):
        assert Connections().ssh_sessions() == [each for each in Connections().all() if each.is_ssh]
        monkeypatch.setattr(connections, "SSH_PORT", server)
        session = Connection(4, LOOPBACK4, server, LOOPBACK4, client, is_ssh=True)
        assert session in Connections().ssh_sessions() and session in Connections().all()
        assert not any(each.local_port == client for each in Connections().ssh_sessions())


def test_ports_that_sshd_is_configured_to_listen_on_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sshd_config.d").mkdir()
    (tmp_path / "sshd_config").write_text("#Port 1\nPort 2200\n  port=2201\nPortNot 5\n")
    (tmp_path / "sshd_config.d" / "more.conf").write_text('Port "2202"\nPort 99999\n')
    monkeypatch.setattr(connections, "_SSH_CONFIG", tmp_path)
    assert {2200, 2201, 2202} <= Connections().ssh_ports()
    assert not {1, 5, 99999} & Connections().ssh_ports()


LISTENS_AS_SSHD = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, b"sshd", 0, 0, 0)
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_ports_that_a_process_named_sshd_listens_on_are_known() -> None:
    command = [sys.executable, "-c", LISTENS_AS_SSHD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        found = Connections().ssh_ports()
        process.communicate("")
    assert port in found


def test_the_ports_of_ssh_are_looked_up_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    seen = Connections(lambda: now)
    monkeypatch.setattr(connections, "_SSH_CONFIG", tmp_path)
    before = seen.ssh_ports()
    (tmp_path / "sshd_config").write_text("Port 2200\n")
    assert seen.ssh_ports() == before
    now += 11
    assert 2200 in seen.ssh_ports()


def test_what_is_on_this_host_leaves_by_loopback() -> None:
    loopback = socket.if_nametoindex("lo")
    assert route_to(4, LOOPBACK4) == loopback
    assert route_to(6, LOOPBACK6) == loopback


def test_an_address_without_a_route_leaves_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> Iterator[bytes]:
        raise OSError(errno.ENETUNREACH, "netlink")
        yield b""

    monkeypatch.setattr(connections, "_asked", unreachable)
    assert route_to(4, LOOPBACK4) is None
