"""How hypothesis runs here (a busy machine is no failure), and the host that the enforcer's tests run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

from tests.unit.host import Host

settings.register_profile("unit", deadline=None, print_blob=True)
settings.load_profile("unit")


@pytest.fixture
def directory() -> Iterator[Path]:
    """In memory where there is such a place: how long a disk takes to sync is not tested here."""
    shared_memory = Path("/dev/shm")
    with TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture
def idle_host(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Not started: a test that starts it may choose its config and what is there before. Watches often."""
    monkeypatch.setattr("firewall.enforcer._WATCH_S", 0.01)
    host = Host(directory / "state")
    yield host
    host.kernel.refuse.clear()
    host.stop()


@pytest.fixture
def host(idle_host: Host) -> Host:
    """The firewall runs, nothing is attached."""
    idle_host.start()
    return idle_host
