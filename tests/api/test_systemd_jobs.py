"""Whether an end is a stop or half of a restart, by what systemctl answers. A script stands in its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from api.systemd import ending, filters_stay, leaves_nobody

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
        f'#!/bin/sh\ncase "$1" in list-jobs) cat {tmp_path}/jobs;; *) cat {tmp_path}/state; exit 1;; esac\n'
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
    assert leaves_nobody(ending()) is (job == "stop")
    assert filters_stay(ending(), "detach") is stays
    assert filters_stay(ending(), "keep") is True


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
    assert filters_stay(ending(), "detach") is True


def test_a_systemd_that_does_not_answer_is_no_reason_to_open_the_host(systemctl: Path) -> None:
    assert ending() == "unknown"
    assert filters_stay(ending(), "detach") is True


def test_without_systemd_the_setting_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EBPF_FW_UNIT", raising=False)
    assert leaves_nobody(ending()) is False  # a guardian may
    assert filters_stay(ending(), "detach") is False
    assert filters_stay(ending(), "keep") is True
