"""An application over the real store and a kernel in memory, for each test its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from api.app import create_app
from firewall.enforcer import Enforcer
from tests.api.client import ApiClient
from tests.memory_kernel import MemoryKernel, memory_enforcer


@pytest.fixture
def settings() -> dict[str, object]:
    """Sections of the config; a test module may override it."""
    return {"bpf": {"max_addresses": 1000, "max_rules": 64}}


@pytest.fixture
def started(tmp_path: Path, settings: dict[str, object]) -> Iterator[tuple[Enforcer, MemoryKernel]]:
    enforcer, kernel = memory_enforcer(tmp_path, settings)
    yield enforcer, kernel
    enforcer.stop()


@pytest.fixture
def enforcer(started: tuple[Enforcer, MemoryKernel]) -> Enforcer:
    return started[0]


@pytest.fixture
def kernel(started: tuple[Enforcer, MemoryKernel]) -> MemoryKernel:
    return started[1]


@pytest.fixture(scope="session")
def openapi_document() -> dict[str, Any]:
    """Made once: it is the same for every application, and takes longer than most tests."""
    with TemporaryDirectory() as directory:
        enforcer, _ = memory_enforcer(Path(directory))
        document = create_app(enforcer).openapi()
        enforcer.stop()
    return document


@pytest.fixture
def api(enforcer: Enforcer, openapi_document: dict[str, Any]) -> Iterator[ApiClient]:
    app = create_app(enforcer, most_body_bytes=100_000)
    app.openapi_schema = openapi_document
    with ApiClient(app) as client:
        yield client
    app.state.running.close()
