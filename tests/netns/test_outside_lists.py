"""Lists from outside on the wire, by the one service of this file: an imported list, a feed, fail2ban, and Docker's
published ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firewall.rule import parse_time
from tests.netns.agent_process import Agent
from tests.netns.crowdsec import CrowdSec
from tests.netns.daemon import PROGRAM
from tests.netns.fail2ban import JAIL, Fail2ban
from tests.netns.topology import run
from tests.netns.world import World
from tests.unit.host import wait_for

PATIENCE_S = 30.0
PORT = 7100


@pytest.fixture
def world(shared_world: World) -> World:
    for each in shared_world.api.get("/v1/sets").json()["items"]:
        shared_world.api.delete(f"/v1/sets/{each['name']}").raise_for_status()
    return shared_world


def command_line(world: World, *arguments: str, stdin: str = "") -> str:
    command = [str(PROGRAM), "--url", f"unix:{world.daemon.socket}", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def drop(world: World, name: str) -> None:
    made = world.api.post("/v1/rules", json={"id": f"drop-{name}", "sources": [f"@{name}"]})
    assert made.status_code == 201, made.text


def test_an_imported_list_is_dropped_and_its_export_imports_again(world: World, tmp_path: Path) -> None:
    address = world.link.peer_address(4)
    command_line(world, "set", "create", "bad")
    drop(world, "bad")
    assert world.udp_echo(PORT)
    save = f'create x hash:net family inet timeout 600 comment\nadd x {address} timeout 500 comment "scan"\n'
    told = command_line(world, "set", "import", "bad", "-", stdin=save + "add x nonsense\n")
    assert told.startswith("added 1")
    assert not world.udp_echo(PORT)
    file = tmp_path / "bad.ndjson"
    command_line(world, "set", "export", "bad", str(file))
    assert json.loads(file.read_text())["comment"] == "scan"
    empty = tmp_path / "empty"
    empty.touch()
    command_line(world, "set", "import", "bad", str(empty), "--mode", "replace", "--allow-empty")
    assert world.udp_echo(PORT)
    command_line(world, "set", "import", "bad", str(file), "--mode", "replace")
    assert not world.udp_echo(PORT)


@contextmanager
def web_server(namespace: str, directory: Path) -> Iterator[str]:
    """Files of a directory, on the namespace's loopback."""
    server = (
        "import functools, http.server as h, sys\n"
        "handler = functools.partial(h.SimpleHTTPRequestHandler, directory=sys.argv[1])\n"
        "server = h.ThreadingHTTPServer(('127.0.0.1', 0), handler)\n"
        "print(server.server_port, flush=True)\nserver.serve_forever()\n"
    )
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", server, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def test_a_feed_drops_what_it_lists_and_a_broken_list_lets_nobody_in(world: World, tmp_path: Path) -> None:
    address = world.link.peer_address(4)
    (tmp_path / "list.txt").write_text(f"# feed\n{address}\n198.51.100.0/24\n")
    with web_server(world.topology.protected, tmp_path) as url:
        # The peer's address is a private one, as all of this world's.
        made = {"name": "feed", "url": f"{url}/list.txt", "reserved": "keep"}
        assert world.api.post("/v1/feeds", json=made).status_code == 201
        drop(world, "feed")
        wait_for(lambda: world.api.get("/v1/feeds/feed").json()["state"]["entries"] == 2, PATIENCE_S)
        assert not world.udp_echo(PORT)
        (tmp_path / "list.txt").write_text("")
        refused = world.api.post("/v1/feeds/feed/refresh")
        assert (refused.status_code, refused.json()["code"]) == (502, "feed_failed")
        assert not world.udp_echo(PORT)
        (tmp_path / "list.txt").write_text("198.51.100.0/24\n")
        assert command_line(world, "feed", "refresh", "feed").startswith("added 0, removed 1")
        assert world.udp_echo(PORT)
        assert "198.51.100.0/24" in command_line(world, "set", "export", "feed", "--format", "plain")
    assert world.api.delete("/v1/rules/drop-feed").status_code == 204
    assert world.api.delete("/v1/feeds/feed").status_code == 204


def test_fail2ban_bans_from_the_log_line_to_the_dropped_packet(world: World, tmp_path: Path) -> None:
    address = world.link.peer_address(4)
    fail2ban = Fail2ban(
        world.topology.protected, tmp_path / "f2b", f"{PROGRAM} --url unix:{world.daemon.socket}"
    )

    def banned() -> list[str]:
        found = world.api.get(f"/v1/sets/f2b-{JAIL}/entries")
        return [each["address"] for each in found.json()["items"]] if found.status_code == 200 else []

    def is_ready() -> bool:
        return "Jail 'door' started" in fail2ban.output.read_text() and (
            world.api.get(f"/v1/rules/f2b-{JAIL}").status_code == 200
        )

    with fail2ban:
        wait_for(is_ready, PATIENCE_S)
        assert world.udp_echo(PORT)
        fail2ban.wrong_password(address)
        wait_for(lambda: banned() == [address], PATIENCE_S)
        assert not world.udp_echo(PORT)
        (entry,) = world.api.get(f"/v1/sets/f2b-{JAIL}/entries").json()["items"]
        assert entry["expires_at"] is not None and "jail door, failures 2" in entry["comment"]
        fail2ban.client("set", JAIL, "unbanip", address)
        wait_for(lambda: banned() == [], PATIENCE_S)
        assert world.udp_echo(PORT)
        fail2ban.client("set", JAIL, "banip", address, "192.0.2.1")
        wait_for(lambda: banned() == [address, "192.0.2.1"], PATIENCE_S)
    assert banned() == []  # it stopped, and lifted its bans
    assert world.udp_echo(PORT)
    with fail2ban:  # all of them at once, as they are in its database
        wait_for(lambda: banned() == [address, "192.0.2.1"], PATIENCE_S)
        wait_for(is_ready, PATIENCE_S)
        assert not world.udp_echo(PORT)
        (entry, _) = world.api.get(f"/v1/sets/f2b-{JAIL}/entries").json()["items"]
        assert "restored" in entry["comment"] and entry["expires_at"] is not None
        wait_for(lambda: "Restore Ban 192.0.2.1" in fail2ban.output.read_text(), PATIENCE_S)
        fail2ban.client("unban", "--all")
        wait_for(lambda: banned() == [], PATIENCE_S)
        assert world.udp_echo(PORT)
    assert "ERROR" not in fail2ban.output.read_text(), fail2ban.output.read_text()


@contextmanager
def with_section(world: World, section: str) -> Iterator[None]:
    """The service's config has a section more."""
    daemon = world.daemon
    before = daemon.configuration_path.read_text()
    daemon.configuration_path.write_text(f"{before}\n{section}")
    try:
        os.kill(daemon.pid, signal.SIGHUP)
        yield
    finally:
        daemon.configuration_path.write_text(before)
        os.kill(daemon.pid, signal.SIGHUP)


def test_decisions_of_the_real_crowdsec_drop_packets_until_they_end(world: World, tmp_path: Path) -> None:
    address = world.link.peer_address(4)
    crowdsec = CrowdSec(world.topology.protected, tmp_path / "crowdsec")
    key = crowdsec.ask("bouncers", "add", "ebpf-fw", "-o", "raw").strip()
    section = f'[crowdsec]\nurl = "{crowdsec.url}"\napi_key = "{key}"\nrefresh = 1\n'

    def listed() -> dict[str, str]:
        found = world.api.get("/v1/sets/crowdsec/entries")
        items = found.json()["items"] if found.status_code == 200 else []
        return {each["address"]: each["comment"] for each in items}

    def state() -> str:
        return str(world.api.get("/v1/crowdsec").json()["state"])

    with crowdsec:
        crowdsec.ask("decisions", "add", "--ip", address, "--duration", "10m", "--reason", "guessing")
        with with_section(world, section):
            wait_for(lambda: list(listed()) == [address], PATIENCE_S)
            assert listed()[address] == "cscli: guessing" and state() == "streaming"
            assert world.udp_echo(PORT)
            drop(world, "crowdsec")
            assert not world.udp_echo(PORT)
            (entry,) = world.api.get("/v1/sets/crowdsec/entries").json()["items"]
            assert 0 < parse_time(entry["expires_at"]) - time.time() <= 600
            crowdsec.ask("decisions", "add", "--range", "198.51.100.0/24", "--duration", "1h")
            crowdsec.ask("decisions", "add", "--ip", "2001:db8::7", "--duration", "1h", "--type", "captcha")
            wait_for(lambda: set(listed()) == {address, "198.51.100.0/24"}, PATIENCE_S)
            crowdsec.ask("decisions", "delete", "--ip", address)
            wait_for(lambda: set(listed()) == {"198.51.100.0/24"}, PATIENCE_S)
            assert world.udp_echo(PORT)
            crowdsec.ask("decisions", "add", "--ip", address, "--duration", "4s")
            wait_for(lambda: address in listed(), PATIENCE_S)
            assert not world.udp_echo(PORT)
            wait_for(lambda: address not in listed(), PATIENCE_S)
            assert world.udp_echo(PORT)
        wait_for(lambda: state() == "off", PATIENCE_S)
    world.api.delete("/v1/rules/drop-crowdsec").raise_for_status()


# What docker makes for `docker run -p 8080:80`: an address behind a bridge, DNAT before routing, and forwarding.
DOCKER = """
table ip nat {
    chain PREROUTING { type nat hook prerouting priority dstnat; iifname "fw0" tcp dport 8080 dnat to 172.31.9.2:80; }
}
table ip filter {
    chain INPUT { type filter hook input priority filter; tcp dport 8080 drop; }
}
"""


@contextmanager
def container(world: World) -> Iterator[Agent]:
    """A namespace that stands for the container, and its published port."""
    host, name = world.topology.protected, f"{world.topology.name}-c"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", host, "link", "add", "docker0", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "-n", host, "address", "add", "172.31.9.1/24", "dev", "docker0")
        run("ip", "-n", name, "address", "add", "172.31.9.2/24", "dev", "eth0")
        for namespace, interface in ((host, "docker0"), (name, "eth0"), (name, "lo")):
            run("ip", "-n", namespace, "link", "set", interface, "up")
        run("ip", "-n", name, "route", "add", "default", "via", "172.31.9.1")
        run("ip", "netns", "exec", host, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        subprocess.run(["ip", "netns", "exec", host, "nft", "-f", "-"], input=DOCKER, text=True, check=True)
        agent = Agent(name)
        try:
            agent.listen("tcp", 80)
            yield agent
        finally:
            agent.close()
    finally:
        subprocess.run(["ip", "netns", "exec", host, "nft", "flush", "ruleset"], check=False)
        run("ip", "netns", "delete", name)
    # The veth pair goes with the namespace, a moment later.
    wait_for(lambda: "docker0" not in run("ip", "-n", host, "link", "show"), PATIENCE_S)


def test_a_rule_on_the_hosts_interface_blocks_a_published_port(world: World) -> None:
    """docs/recipes.md tells of it. The host's INPUT chain drops the port, and is never asked."""
    ours = world.link.address(4)
    world.add_peer_address("10.90.0.77")

    def reaches(source: str | None = None) -> bool:
        answered = world.peer.call(
            "exchange",
            transport="tcp",
            family=4,
            address=ours,
            port=8080,
            source=source,
            source_port=0,
            timeout_s=1.0,
        )
        return answered == "answered"

    with container(world):
        assert reaches() and reaches("10.90.0.77")
        command_line(
            world, "rule", "add", "--id", "published", "--interface", "fw0", "--protocol", "tcp",
            "--destination-port", "8080",
        )  # fmt: skip
        assert not reaches() and not reaches("10.90.0.77")
        command_line(
            world, "rule", "add", "--id", "office", "--action", "allow", "--priority", "10", "--interface", "fw0",
            "--source", "10.90.0.77", "--protocol", "tcp", "--destination-port", "8080",
        )  # fmt: skip
        assert not reaches() and reaches("10.90.0.77")
        command_line(world, "rule", "delete", "published", "office")
        assert reaches()
