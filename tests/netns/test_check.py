"""`ebpf-fw check` in a namespace of its own, on interfaces that others have already taken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.topology import Topology, run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def topology(request: pytest.FixtureRequest) -> Iterator[Topology]:
    made = Topology.for_test(request.node.nodeid)
    made.build()
    yield made
    made.remove()
    assert not made.leaks()


def inside(topology: Topology, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", topology.protected, sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def findings(output: str, name: str) -> list[dict[str, Any]]:
    return [finding for finding in json.loads(output)["findings"] if finding["name"] == name]


def state_of(topology: Topology) -> str:
    links = run("ip", "-n", topology.protected, "-d", "link", "show", "dev", "fw0")
    return f"{links}{run('tc', '-n', topology.protected, 'qdisc', 'show', 'dev', 'fw0')}"


def test_a_free_interface_has_no_failure_and_is_left_as_it_was(topology: Topology) -> None:
    before = state_of(topology)
    done = inside(topology, "cli", "check", "--json", "--interface", "fw0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert state_of(topology) == before
    [mode] = findings(done.stdout, "mode")
    assert "driver veth" in mode["detail"]


def test_programs_of_others_are_named_and_our_own_is_told_apart(topology: Topology) -> None:
    config = topology.directory / "config.toml"
    config.write_text(f'[bpf]\npin_root = "{topology.bpffs}/fw"\n')
    command = (sys.executable, "-m", "cli", "check", "--json", "--interface", "fw0", "--config", str(config))
    pin = f"{topology.bpffs}/fw/programs/egress"
    done = inside(topology, "tests.netns.foreign_programs", "fw0", pin, *command)
    assert done.returncode == 1, done.stdout + done.stderr
    tcx, _, document = done.stdout.partition("\n")
    [ingress] = findings(document, "ingress")
    assert ingress["status"] == "fail"
    assert "(other_xdp) is attached, generic" in ingress["detail"]
    assert ingress["mend"] == "ip link set dev fw0 xdpgeneric off"
    egress = [(finding["status"], finding["detail"]) for finding in findings(document, "egress")]
    if tcx == "tcx":
        status, detail = egress.pop(0)
        assert status == "warn"
        assert "(other_tcx)" in detail
    [(first, of_other), (second, of_ours)] = egress
    assert (first, second) == ("warn", "ok")
    assert "clsact prio 5" in of_other
    assert "(other_tc)" in of_other
    assert "ebpf-fw's own clsact prio 9" in of_ours


def test_what_the_mend_of_an_ingress_qdisc_says_mends_it(topology: Topology) -> None:
    run("tc", "-n", topology.protected, "qdisc", "add", "dev", "fw0", "ingress")
    done = inside(topology, "cli", "check", "--json", "--interface", "fw0")
    [egress] = findings(done.stdout, "egress")
    assert (done.returncode, egress["status"]) == (1, "fail")
    run("ip", "netns", "exec", topology.protected, *egress["mend"].split())
    assert inside(topology, "cli", "check", "--interface", "fw0").returncode == 0


def test_an_interface_that_is_not_there_fails(topology: Topology) -> None:
    done = inside(topology, "cli", "check", "--interface", "absent0")
    assert done.returncode == 1
    assert "no such interface" in done.stdout


def test_all_interfaces_are_checked_where_none_is_named(topology: Topology) -> None:
    done = inside(topology, "cli", "check", "--json")
    assert {finding["interface"] for finding in json.loads(done.stdout)["findings"]} == {None, "fw0"}
