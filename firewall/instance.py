"""One service a state directory: a lock that the kernel takes back however the process ends.

Two of them would each change the same maps and believe that they alone do. A guardian (api/guardian.py) holds the lock
for the moments in which it does a service's work; a service that starts then waits for it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firewall.errors import Conflict, StoreFailed

LOCK = "lock"
_SERVICE, _GUARDIAN = b"service", b"guardian"
_PATIENCE_S, _LOOK_S = 120.0, 0.05
_UNTIL_SURE_S = 0.3  # a holder writes its name just after it took the lock


@contextmanager
def only_instance(directory: Path) -> Iterator[None]:
    """Raises Conflict where another process holds it, StoreFailed where the directory cannot be used."""
    with _opened(directory) as lock:
        now = time.monotonic()
        end, until_sure = now + _PATIENCE_S, now + _UNTIL_SURE_S
        while not _taken(lock, _SERVICE):
            now = time.monotonic()
            if os.pread(lock, 64, 0) == _GUARDIAN:
                until_sure = now + _UNTIL_SURE_S
            if now > min(until_sure, end):
                raise Conflict(
                    f"another ebpf-fw runs with the state directory {directory}",
                    "stop it first (`systemctl stop ebpf-fw`); or give this one its own directory and bpf.pin_root",
                    code="already_running",
                )
            time.sleep(_LOOK_S)
        yield


@contextmanager
def instead_of_service(directory: Path) -> Iterator[bool]:
    """Whether there is no service (nor anybody instead of it): then nobody else is, while the context lasts."""
    with _opened(directory) as lock:
        is_ours = _taken(lock, _GUARDIAN)
        yield is_ours
        if is_ours:
            os.ftruncate(lock, 0)


def _taken(lock: int, holder: bytes) -> bool:
    """The holder's name stands in the file. A service that dies leaves it there, and so it is only read by who found
    the lock held."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    os.ftruncate(lock, 0)
    os.pwrite(lock, holder, 0)
    return True


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreFailed(
            f"cannot use the state directory {directory}: {error.strerror}",
            "see state.directory in the config",
        ) from error
    try:
        yield lock
    finally:
        os.close(lock)
