"""Changes queue for the one writer: who asks together is answered together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.running import Running
from firewall.commit import Outcome
from tests.memory_kernel import memory_enforcer

CLIENTS, CHANGES = 8, 20


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    enforcer, _ = memory_enforcer(tmp_path)
    made = Running(enforcer, "running")
    yield made
    made.close()
    enforcer.stop()


@pytest.fixture
def groups(running: Running, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many changes each group has had so far."""
    sizes: list[int] = []
    together = running.enforcer.together

    def counted(calls: list[Callable[[], object]]) -> list[Outcome]:
        sizes.append(len(calls))
        return together(calls)

    monkeypatch.setattr(running.enforcer, "together", counted)
    return sizes


async def ask(running: Running, changes: int, slowness_s: float = 0.0) -> list[int]:
    """A client that waits for each answer, and then so long."""
    answers = []
    for number in range(changes):
        answers.append(await running.change(lambda number=number: number))
        await asyncio.sleep(slowness_s)
    return answers


def test_clients_that_were_answered_together_are_waited_for(
    running: Running, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.running.LINGER_S", 0.2)

    async def live() -> list[list[int]]:
        return await asyncio.gather(*(ask(running, CHANGES, 0.001 * slow) for slow in range(CLIENTS)))

    assert asyncio.run(live()) == [list(range(CHANGES))] * CLIENTS
    assert sum(groups) == CLIENTS * CHANGES
    assert groups.count(CLIENTS) >= CHANGES // 2, groups  # once they have found together


def test_nobody_waits_long_for_who_does_not_come_again(
    running: Running, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.running.LINGER_S", 0.05)

    async def live() -> float:
        await asyncio.gather(*(ask(running, 5) for _ in range(CLIENTS)))
        began = asyncio.get_running_loop().time()
        await ask(running, 50)
        return asyncio.get_running_loop().time() - began

    took = asyncio.run(live())
    assert groups[-49:] == [1] * 49
    assert took < 50 * 0.05, "only the first could have to wait"
