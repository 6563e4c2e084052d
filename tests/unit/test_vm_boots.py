"""A kernel boots once for all of its checks (tests/vm/conftest.py), also where the boot fails."""

from __future__ import annotations

import pytest

from tests.vm.boot import GuestDied, Result
from tests.vm.conftest import once

FIRST = 'CHECK {"name": "first", "ok": true, "seconds": 1, "facts": {}}\n'


def test_a_boot_serves_every_check() -> None:
    boots = []

    def run(line: str) -> Result:
        boots.append(line)
        return Result(0, FIRST, "", 1)

    report = once(run)
    assert report("6.1") is report("6.1") and set(report("6.1")) == {"first"}
    assert set(report("6.12")) == {"first"}
    assert boots == ["6.1", "6.12"]


def test_a_machine_that_died_is_not_booted_again_and_what_it_reported_counts() -> None:
    boots = []

    def run(line: str) -> Result:
        boots.append(line)
        raise GuestDied("went off", FIRST, "")

    report = once(run)
    with pytest.raises(GuestDied):
        report("6.1")
    assert set(report("6.1")) == {"first"}
    assert boots == ["6.1"]


def test_a_command_that_failed_is_not_run_again() -> None:
    boots = []

    def run(line: str) -> Result:
        boots.append(line)
        return Result(3, FIRST, "", 1)

    report = once(run)
    with pytest.raises(pytest.fail.Exception, match="ended with 3"):
        report("6.1")
    assert set(report("6.1")) == {"first"}
    assert boots == ["6.1"]
