"""Fixtures that give a test its own world, and what they report when it fails or leaks.

Owns the worlds' life times. It must not hold a test's logic.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.netns.topology import Topology
from tests.netns.world import World

HERE = Path(__file__).parent
LOG_CHARACTERS = 20_000
worlds_key = pytest.StashKey[list[World]]()
MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(request: pytest.FixtureRequest) -> Iterator[MakeWorld]:
    """Make worlds: `make_world(links=1, static_neighbours=True, start=True, **configuration)`.

    The configuration's keywords are its tables: `filter={"default_ingress": "drop"}`, `interfaces=[...]`.
    """
    with ExitStack() as stack:
        made = request.node.stash.setdefault(worlds_key, [])

        def make(
            links: int = 1, static_neighbours: bool = True, start: bool = True, **configuration: Any
        ) -> World:
            test_id = f"{request.node.nodeid}#{len(made)}"
            world = World(Topology.for_test(test_id, links, static_neighbours), configuration)
            made.append(world)
            stack.enter_context(world)
            return world.start() if start else world

        yield make


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """One link, default configuration, the service ready and attached to it."""
    return make_world()


@pytest.fixture(scope="module")
def _world_of_the_file(request: pytest.FixtureRequest) -> Iterator[World]:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    with World(Topology.for_test(f"{request.node.nodeid}#{worker}", links=2)) as shared:
        yield shared.start()


@pytest.fixture
def shared_world(request: pytest.FixtureRequest, _world_of_the_file: World) -> World:
    """Two links and the running service, once a file, without rules: for tests that change only those."""
    request.node.stash.setdefault(worlds_key, []).append(_world_of_the_file)
    assert _world_of_the_file.api.put("/v1/ruleset", json={"rules": []}).status_code == 200
    return _world_of_the_file


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file run on one worker, one after the other: the machine is shared."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for world in item.stash.get(worlds_key, []):
            log = _log_of(world)
            if log:
                report.sections.append((f"log of the service in {world.topology.protected}", log))
    return report


def _log_of(world: World) -> str:
    return world.daemon.log[-LOG_CHARACTERS:] if hasattr(world, "daemon") else ""
