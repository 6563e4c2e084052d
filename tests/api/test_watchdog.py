"""Signs of life are sent while the loop runs, and only while it does."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from api.watchdog import beat, period_s


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "7"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0", "WATCHDOG_PID": "7"}, None),
        ({"WATCHDOG_USEC": "soon", "WATCHDOG_PID": "7"}, None),
    ],
)
def test_systemd_says_how_often(environment: dict[str, str], expected: float | None) -> None:
    assert period_s(environment, 7) == expected


def test_a_loop_that_hangs_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    sent: list[str] = []

    async def live() -> tuple[int, int]:
        beating = asyncio.create_task(beat(sent.append))
        await asyncio.sleep(0.1)
        before = len(sent)
        time.sleep(0.2)  # noqa: ASYNC251 - that is the fault
        after = len(sent)
        beating.cancel()
        return before, after

    before, after = asyncio.run(live())
    assert set(sent) == {"WATCHDOG=1"} and before == after >= 3


def test_without_a_watchdog_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    sent: list[str] = []
    asyncio.run(asyncio.wait_for(beat(sent.append), 5))
    assert not sent
