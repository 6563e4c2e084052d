"""Whether the service notices that it listens for others and its unit keeps them out. A script stands for systemctl."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from api.reach import is_for_others, lets_in_this_host_alone, warn_if_kept_from


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Answers `systemctl show KEY ...` with the file of that name beside it."""
    script = tmp_path / "systemctl"
    script.write_text(f'#!/bin/sh\ncd {tmp_path} && [ "$1" = show ] && cat -- "$2"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("EBPF_FW_UNIT", "ebpf-fw.service")
    return tmp_path


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


@pytest.mark.parametrize(
    ("urls", "told"),
    [
        (["https://lists.example/drop.json", "http://localhost:8080/"], True),
        (["http://127.0.0.1:8080/", "http://[::1]/x", "http://localhost/"], False),
        ([], False),
    ],
)
def test_lists_that_the_unit_keeps_away_are_told(
    systemctl: Path, capsys: pytest.CaptureFixture[str], urls: list[str], told: bool
) -> None:
    (systemctl / "--property=IPAddressDeny").write_text("::/0 0.0.0.0/0\n")
    (systemctl / "--property=IPAddressAllow").write_text("127.0.0.0/8 ::1/128\n")
    warn_if_kept_from(urls)
    said = capsys.readouterr()
    assert ("IPAddressAllow=any" in said.out + said.err) is told


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
