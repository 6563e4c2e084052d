"""Fixtures of the packet tests: loaded programs on a bpf file system of the test's own.

`firewall` is shared by a worker's tests and starts each with no rules and the default settings; what a test
changes about capacities or pins it does on a `fresh` one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.datapath.contents", "tests.datapath.loaded")

from tests.datapath.loaded import INTERFACES, Loaded  # noqa: E402

MOUNT_SOURCE = "ebpf-fw-test-"  # and the process's number


def remove_leftovers() -> None:
    """Unmounts what runs that were killed left."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        source, target, *_ = line.split()
        process = source.removeprefix(MOUNT_SOURCE)
        if process != source and not Path("/proc", process).exists():
            subprocess.run(["umount", "--lazy", target], check=False)  # another worker may be first


@contextmanager
def mounted(directory: Path) -> Iterator[Path]:
    """`directory` with a bpf file system on its bpf/."""
    target = directory / "bpf"
    target.mkdir()
    subprocess.run(["mount", "-t", "bpf", f"{MOUNT_SOURCE}{os.getpid()}", str(target)], check=True)
    try:
        yield directory
    finally:
        # Lazily: after a failed test a descriptor may still hold it.
        subprocess.run(["umount", "--lazy", str(target)], check=True)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    remove_leftovers()
    with mounted(tmp_path_factory.mktemp("shared")) as directory:
        loaded = Loaded(directory)
        yield loaded
        loaded.close()


_failed_before = 0


@pytest.fixture
def firewall(shared: Loaded, request: pytest.FixtureRequest) -> Loaded:
    """What a failed test left behind is not what the next one is about: it gets new maps."""
    global _failed_before
    if request.session.testsfailed != _failed_before:
        _failed_before = request.session.testsfailed
        shared.renew()
    shared.rules()
    shared.configure()
    shared.name_interfaces(**INTERFACES)
    return shared


@pytest.fixture
def fresh_directory(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path) as directory:
        yield directory


@pytest.fixture
def fresh(fresh_directory: Path) -> Iterator[Loaded]:
    loaded = Loaded(fresh_directory)
    yield loaded
    loaded.close()
