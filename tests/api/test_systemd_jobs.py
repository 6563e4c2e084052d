"""Whether an end is a stop or half of a restart, by what systemctl answers. A script stands in its place."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from api.listeners import is_for_others
from api.systemd import ending, filters_stay, lets_in_this_host_alone

JOBS = """
131 network.target             start   waiting
132 ebpf-fw.service            {job} running
133 other-ebpf-fw.service      restart waiting
"""


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Answers with the files `jobs` and `state` beside it; without them it fails."""
    script = tmp_path / "systemctl"
    script.write_text(
        f"#!/bin/sh\ncd {tmp_path}\n"
        'case "$1" in list-jobs) cat jobs;; show) cat -- "$2";; *) cat state; exit 1;; esac\n'
    )
    script.chmod(0o755)
    (tmp_path / "state").write_text("degraded\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("EBPF_FW_UNIT", "ebpf-fw.service")
    return tmp_path


@pytest.mark.parametrize(
    ("job", "told", "stays"),
    [("stop", "stop", False), ("restart", "restart", True), ("try-restart", "restart", True)],
)
def test_the_job_of_the_unit_tells(systemctl: Path, job: str, told: str, stays: bool) -> None:
    (systemctl / "jobs").write_text(JOBS.format(job=job))
    assert ending() == told
    assert filters_stay("detach") is stays
    assert filters_stay("keep") is True


def test_a_signal_without_a_job_is_a_stop_by_hand(systemctl: Path) -> None:
    (systemctl / "jobs").write_text(
        JOBS.format(job="restart").replace("132 ebpf-fw.service", "132 x.service")
    )
    assert ending() == "stop"
    (systemctl / "jobs").write_text("")
    assert ending() == "stop"


def test_the_filters_stay_while_the_host_goes_down(systemctl: Path) -> None:
    (systemctl / "jobs").write_text(JOBS.format(job="stop"))
    (systemctl / "state").write_text("stopping\n")
    assert ending() == "shutdown"
    assert filters_stay("detach") is True


def test_a_systemd_that_does_not_answer_is_no_reason_to_open_the_host(systemctl: Path) -> None:
    assert ending() == "unknown"
    assert filters_stay("detach") is True


def test_without_systemd_the_setting_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EBPF_FW_UNIT", raising=False)
    assert filters_stay("detach") is False
    assert filters_stay("keep") is True


@pytest.mark.parametrize(
    ("denied", "allowed", "is_closed"),
    [
        ("::/0 0.0.0.0/0", "127.0.0.0/8 ::1/128", True),
        ("::/0 0.0.0.0/0", "127.0.0.0/8 ::1/128 192.0.2.0/24", False),
        ("::/0 0.0.0.0/0", "", True),
        ("", "", False),
        ("203.0.113.0/24", "", False),
    ],
)
def test_a_unit_that_lets_nobody_in_is_known(
    systemctl: Path, denied: str, allowed: str, is_closed: bool
) -> None:
    (systemctl / "--property=IPAddressDeny").write_text(denied + "\n")
    (systemctl / "--property=IPAddressAllow").write_text(allowed + "\n")
    assert lets_in_this_host_alone() is is_closed


def test_without_a_unit_nobody_is_kept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EBPF_FW_UNIT", raising=False)
    assert not lets_in_this_host_alone()


@pytest.mark.parametrize(
    ("hosts", "is_open"), [(["127.0.0.1", "::1"], False), (["127.0.0.1", "0.0.0.0"], True), ([], False)]
)
def test_who_can_connect_is_known_from_the_listeners(hosts: list[str], is_open: bool) -> None:
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(
                socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
            )
            for host in hosts
        ]
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        assert is_for_others([*sockets, unix]) is is_open
