"""The real service on an address that others reach: TLS, certificates of clients, tokens, users of the Unix socket.

One service for the file: it is asked from the peer's namespace, and by other users of this host.
"""

from __future__ import annotations

import grp
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.api.certificates import Authority
from tests.netns.topology import Topology
from tests.netns.world import World
from tests.unit.host import wait_for

PYTHON = "/usr/bin/python3"  # that any user may run
PORT, NOBODY, SOON_S = 9443, 65534, 30.0
GROUP = "daemon"  # one that every host has, in the place of ebpf-fw
# Prints status, body as JSON, and which certificate the service showed; or why no connection came about.
ASK = """
import hashlib, http.client, json, socket, ssl, sys
where, method, path, token, body, ca, certificate, key = json.loads(sys.argv[1])
headers = {"Authorization": f"Bearer {token}"} if token else {}
shown = None
try:
    if isinstance(where, str):
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(where)
    else:
        context = ssl.create_default_context(cafile=ca)
        if certificate:
            context.load_cert_chain(certificate, key)
        connection = http.client.HTTPSConnection(*where, timeout=20, context=context)
        connection.connect()
        shown = hashlib.sha256(connection.sock.getpeercert(True)).hexdigest()
    if body is not None:
        headers["Content-Type"] = "application/json"
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    content = answer.read()
    print(json.dumps([answer.status, json.loads(content or b"null"), shown]))
except OSError as error:
    print(json.dumps([0, str(error), shown]))
"""


class Exposed:
    """The world, the authorities, and who asks."""

    def __init__(self, world: World) -> None:
        self.world = world
        directory = world.topology.directory
        self.ours, self.clients = Authority(directory, "ours"), Authority(directory, "clients")
        self.certificate, self.key = directory / "tls.pem", directory / "tls.key"
        self.renew()
        self.monitor, self.other = self.clients.client("monitor"), self.clients.client("other")
        directory.chmod(0o755)
        self.address = world.link.address(4)

    def renew(self) -> None:
        self.ours.write_server(self.certificate, self.key, self.world.link.address(4))

    def configure(self) -> None:
        api = {
            "listen": [f"unix:{self.world.daemon.socket}", f"{self.address}:{PORT}"],
            "tls_certificate": str(self.certificate),
            "tls_key": str(self.key),
            "client_ca": str(self.clients.pem),
            "socket_group": GROUP,
            "header_timeout_s": 2,
        }
        daemon = self.world.daemon
        daemon.configure({"api": api, "interfaces": [{"name": self.world.link.interface}]})
        text = daemon.configuration_path.read_text()
        scopes = '[api]\nclient_scopes = { "monitor" = "read" }\n'
        daemon.configuration_path.write_text(text.replace("[api]\n", scopes))

    def from_peer(
        self,
        method: str = "GET",
        path: str = "/v1/rules",
        client: tuple[str, str] | None = None,
        token: str = "",
        body: Any = None,
    ) -> list[Any]:
        certificate, key = client or ("", "")
        told = [[self.address, PORT], method, path, token, body, str(self.ours.pem), certificate, key]
        return _asked(["ip", "netns", "exec", self.world.topology.peer, PYTHON, "-c", ASK, json.dumps(told)])

    def over_socket(self, *groups: int, path: str = "/v1/rules", token: str = "") -> list[Any]:
        told = [str(self.world.daemon.socket), "GET", path, token, None, "", "", ""]
        command = [PYTHON, "-c", ASK, json.dumps(told)]
        return _asked(command, user=NOBODY, group=NOBODY, extra_groups=list(groups))


def _asked(command: list[str], **who: Any) -> list[Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, **who)
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def exposed(request: pytest.FixtureRequest) -> Iterator[Exposed]:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    with World(Topology.for_test(f"{request.node.nodeid}#{worker}")) as world:
        found = Exposed(world)
        found.configure()
        world.start()
        yield found


def test_who_comes_over_the_wire_needs_a_certificate_and_a_scope(exposed: Exposed) -> None:
    status, why, _ = exposed.from_peer()
    assert status == 0 and why, "the handshake must fail without a certificate"
    assert exposed.from_peer(client=exposed.monitor)[0] == 200
    status, problem, _ = exposed.from_peer("POST", client=exposed.monitor, body={"id": "a"})
    assert (status, problem["code"]) == (403, "insufficient_scope")
    status, problem, _ = exposed.from_peer(client=exposed.other)
    assert (status, problem["code"]) == (401, "authentication_required")


def test_a_token_made_over_the_socket_opens_the_wire_and_is_in_the_audit(exposed: Exposed) -> None:
    api = exposed.world.api
    text = api.post("/v1/tokens", json={"name": "ci", "scope": "rules"}).json()["token"]
    rule = {"id": "by-ci", "sources": "198.51.100.1"}
    status, answer, _ = exposed.from_peer("POST", client=exposed.other, token=text, body=rule)
    assert status == 201, answer
    entry = api.get("/v1/audit?target=by-ci").json()["items"][0]
    peer = exposed.world.link.peer_address(4)
    assert entry["actor"] == "token:ci" and entry["source"].startswith(f"{peer}:")
    assert api.delete("/v1/tokens/ci").status_code == 204
    status, problem, _ = exposed.from_peer(client=exposed.other, token=text)
    assert (status, problem["code"]) == (401, "invalid_token")
    wait_for(lambda: api.get("/v1/audit?kind=access").json()["items"], SOON_S)
    wait_for(lambda: "access.denied" in exposed.world.daemon.log, SOON_S)


def test_another_user_gets_nowhere_over_the_socket_unless_in_the_group(exposed: Exposed) -> None:
    path, group = exposed.world.daemon.socket, grp.getgrnam(GROUP).gr_gid
    assert path.stat().st_gid == group and path.stat().st_mode & 0o777 == 0o660
    assert exposed.over_socket()[0] == 0  # the file's mode already says no
    assert exposed.over_socket(group)[0] == 200
    path.chmod(0o666)  # and if it did not, the kernel tells who asks
    try:
        status, problem, _ = exposed.over_socket()
        assert (status, problem["code"]) == (403, "peer_not_allowed")
        text = exposed.world.api.post("/v1/tokens", json={"name": "t", "scope": "read"}).json()["token"]
        assert exposed.over_socket(token=text)[0] == 200
        assert exposed.over_socket(path="/healthz")[0] == 200
    finally:
        path.chmod(0o660)


def test_another_user_sees_neither_state_nor_pins(exposed: Exposed) -> None:
    daemon = exposed.world.daemon
    state = daemon.directory / "state"
    script = (
        "import json, os, sys\n"
        "try:\n"
        "    print(json.dumps(os.listdir(sys.argv[1])))\n"
        "except PermissionError:\n"
        "    print('[]')\n"
    )
    for path in (state, daemon.pin_root):
        assert list(path.iterdir()), "there is something to see"
        assert _asked([PYTHON, "-c", script, str(path)], user=NOBODY, group=NOBODY, extra_groups=[]) == []
    assert _asked([PYTHON, "-c", script, str(daemon.directory)], user=NOBODY, group=NOBODY, extra_groups=[])


def test_a_new_certificate_is_shown_after_a_reload_and_by_itself(exposed: Exposed) -> None:
    def shown() -> str:
        return str(exposed.from_peer(client=exposed.monitor)[2])

    first = shown()
    exposed.renew()
    daemon = exposed.world.daemon
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: shown() != first, SOON_S)
    second = shown()
    exposed.renew()
    wait_for(lambda: shown() != second, SOON_S)
    assert exposed.from_peer(client=exposed.monitor)[0] == 200


def test_slow_clients_over_the_wire_hold_up_nobody(exposed: Exposed) -> None:
    """They never finish their handshake; both the wire and the socket go on, and they are sent away."""
    world = exposed.world
    script = (
        "import socket, sys, time\n"
        "slow = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(50)]\n"
        "print('up', flush=True)\n"
        "for each in slow:\n"
        "    each.settimeout(30)\n"
        "    assert each.recv(1) == b''\n"
        "print('gone', flush=True)\n"
    )
    command = ["ip", "netns", "exec", world.topology.peer, PYTHON, "-c", script, exposed.address, str(PORT)]
    with ExitStack() as stack:
        slow = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert slow.stdout is not None and slow.stdout.readline() == "up\n"
        assert world.api.post("/v1/rules", json={"id": "s", "sources": "198.51.100.2"}).status_code == 201
        assert exposed.from_peer(client=exposed.monitor)[0] == 200
        assert slow.stdout.readline() == "gone\n"
    assert world.api.get("/v1/status").json()["api"]["tls"] is True


def test_nothing_failed_on_the_way(exposed: Exposed) -> None:
    """The last of the file: the socket answers still, and no request raised."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(exposed.world.daemon.socket))
    assert "Traceback" not in exposed.world.daemon.log
