"""One service a state directory: a lock that the kernel takes back however the process ends.

Two of them would each change the same maps and believe that they alone do.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firewall.errors import Conflict, StoreFailed

LOCK = "lock"


@contextmanager
def only_instance(directory: Path) -> Iterator[None]:
    """Raises Conflict where another process holds it, StoreFailed where the directory cannot be used."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreFailed(
            f"cannot use the state directory {directory}: {error.strerror}",
            "see state.directory in the config",
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another ebpf-fw runs with the state directory {directory}",
                "stop it first (`systemctl stop ebpf-fw`); or give this one its own directory and bpf.pin_root",
                code="already_running",
            ) from None
        yield
    finally:
        os.close(lock)
