"""Runs inside the machine: the unit under the real systemd, with traffic from a namespace that a rule drops.

Owns the installation of the unit for this machine. The service starts slowly here: it is emulated.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.vm.guest import PATIENCE_S, eventually, run, run_checks

HOME = Path("/opt/ebpf-fw")
CONFIG = Path("/etc/ebpf-fw/config.toml")
COMMAND = Path("/usr/bin/ebpf-fw")
DROP_IN = Path("/etc/systemd/system/ebpf-fw.service.d/slow.conf")
PINS = Path("/sys/fs/bpf/ebpf-fw")
INTERFACES = '[[interfaces]]\nname = "fw0"\n'


def configure(text: str = "") -> None:
    CONFIG.write_text(text + INTERFACES)


def set_up() -> None:
    COMMAND.write_text(f'#!/bin/sh\nPYTHONPATH={HOME} exec {HOME}/.venv/bin/python -m cli "$@"\n')
    COMMAND.chmod(0o755)
    CONFIG.parent.mkdir(exist_ok=True)
    configure()
    DROP_IN.parent.mkdir(parents=True)
    DROP_IN.write_text(f"[Service]\nTimeoutStopSec={PATIENCE_S}\n")  # for its starts the service asks itself
    Path("/etc/systemd/system/ebpf-fw.service").write_text((HOME / "systemd/ebpf-fw.service").read_text())
    run("systemctl daemon-reload")
    run("ip netns add peer")
    run("ip link add fw0 type veth peer name peer0 netns peer")
    for command in (
        "ip link set fw0 up",
        "ip address add 10.9.0.1/24 dev fw0",
        "ip -n peer link set peer0 up",
        "ip -n peer address add 10.9.0.2/24 dev peer0",
    ):
        run(command)


def answered() -> bool:
    return " 0 received" not in run("ip netns exec peer ping -n -q -c 3 -i 0.2 -W 1 10.9.0.1", None)


@contextmanager
def pinging() -> Iterator[dict[str, int]]:
    """What was sent and answered, once it has ended."""
    command = "ip netns exec peer ping -n -q -i 0.02 -W 1 10.9.0.1"
    ping = subprocess.Popen(command.split(), stdout=subprocess.PIPE, text=True)
    told: dict[str, int] = {}
    try:
        yield told
    finally:
        ping.send_signal(signal.SIGINT)
        output, _ = ping.communicate()
        counts = re.search(r"(\d+) packets transmitted, (\d+) received", output)
        assert counts, output
        told.update(sent=int(counts[1]), passed=int(counts[2]))


def journal() -> str:
    return run("journalctl -u ebpf-fw --no-pager -o cat")


def is_attached() -> bool:
    return "xdp" in run("ip link show fw0")


def main_pid() -> int:
    return int(run("systemctl show -p MainPID --value ebpf-fw"))


def starts() -> dict[str, Any]:
    assert answered()
    began = time.monotonic()
    run("systemctl start ebpf-fw")
    took = time.monotonic() - began
    run("ebpf-fw rule add --id peer --source 10.9.0.2")
    assert is_attached() and not answered()
    return {"seconds": round(took, 1)}


def restarts_without_a_gap() -> dict[str, Any]:
    before = main_pid()
    with pinging() as told:
        for _ in range(3):
            run("systemctl restart ebpf-fw")
    assert told["passed"] == 0 and told["sent"] > 100, told
    assert main_pid() != before
    assert journal().count("filters=stay") == 3
    return told


def restarts_without_a_gap_where_there_is_no_dbus() -> dict[str, Any]:
    run("systemctl stop dbus.socket dbus.service")
    try:
        with pinging() as told:
            run("systemctl restart ebpf-fw")
    finally:
        run("systemctl start dbus.socket")
    assert told["passed"] == 0 and told["sent"] > 20, told
    return told


def comes_back_after_a_kill() -> dict[str, Any]:
    before = main_pid()
    with pinging() as told:
        run("systemctl kill -s KILL ebpf-fw")
        eventually(lambda: main_pid() not in (0, before), "systemd starts it again")
        eventually(lambda: run("systemctl is-active ebpf-fw", None).strip() == "active", "active")
    assert told["passed"] == 0 and told["sent"] > 20, told
    return told


def reloads() -> dict[str, Any]:
    before = main_pid()
    configure('[filter]\nmalformed = "pass"\n[bpf]\nmax_rules = 64\n')
    run("systemctl reload ebpf-fw")
    eventually(lambda: "config read again" in journal(), "it is read again")
    assert "bpf.max_rules" in journal()
    CONFIG.write_text("nonsense")
    run("systemctl reload ebpf-fw")
    eventually(lambda: "all goes on as before" in journal(), "it is refused")
    graver = run("journalctl -u ebpf-fw --no-pager -o cat -p warning")
    assert "all goes on as before" in graver and "[info]" not in graver, "the journal knows the levels"
    assert not re.search(r"^\d{4}-\d\d-", journal(), re.MULTILINE), "it knows the time itself"
    eventually(lambda: run("systemctl is-active ebpf-fw", None).strip() == "active", "active")
    configure()
    assert main_pid() == before and not answered()
    return {}


def stops() -> dict[str, Any]:
    run("systemctl stop ebpf-fw")
    assert not is_attached() and not PINS.exists() and answered()
    return {}


def keeps_the_filters_where_the_config_says_so() -> dict[str, Any]:
    configure('[service]\non_stop = "keep"\n')
    run("systemctl start ebpf-fw")
    run("systemctl stop ebpf-fw")
    assert is_attached() and PINS.exists() and not answered()
    configure()
    run("systemctl start ebpf-fw")
    assert not answered()
    run(f"kill -TERM {main_pid()}")
    eventually(lambda: run("systemctl is-active ebpf-fw", None).strip() == "inactive", "it ends")
    assert not is_attached() and answered(), "a signal without a job is a stop"
    return {}


if __name__ == "__main__":
    set_up()
    run_checks(
        {
            each.__name__: each
            for each in (
                starts,
                restarts_without_a_gap,
                restarts_without_a_gap_where_there_is_no_dbus,
                comes_back_after_a_kill,
                reloads,
                stops,
                keeps_the_filters_where_the_config_says_so,
            )
        }
    )
    print(journal())
