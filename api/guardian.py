"""Takes back unconfirmed changes, and ends panic, where the service does not live to do it (docs/adr/0011).

`python -m api.guardian DATABASE CONFIG` waits beside the service, in a session of its own. When a change or panic has
run out and nobody holds the instance's lock, it does what a start does, without HTTP: it opens the store, which takes
the change back, makes the pinned maps hold that, and ends with the filters judging. Where a service lives, it does
nothing.

Owns the waiting and the decision. While it waits it has loaded next to nothing of the rest.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import structlog

from firewall.deadlines import next_due

LOCK = "guardian"
_LOOK_S = 1.0
_GRACE_S = 1.5  # the service itself comes first
_RETRY_S = 5.0
_HOME = Path(__file__).resolve().parent.parent
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = structlog.get_logger(__name__)


class Guardians:
    """The service's side: sees to it that one waits while a change does."""

    def __init__(self, database: Path, config: Path) -> None:
        self._database = database
        self._config = config
        self._child: subprocess.Popen[bytes] | None = None

    def ensure(self) -> None:
        """Starts one unless one is there. Cheap; to be called again now and then, for it may have been killed."""
        if self._child is not None and self._child.poll() is None:
            return
        try:
            if not is_waiting(self._database.parent):
                self._child = self._start()
        except OSError as error:  # the change is made, and the service sees to it as long as it lives
            log.error("no guardian waits beside the service", error=str(error))

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "api.guardian", str(self._database), str(self._config.resolve())],
            cwd=_HOME,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if _outlives_us(sys.stderr.fileno()) else subprocess.DEVNULL,
            start_new_session=True,
        )


def _outlives_us(stderr: int) -> bool:
    """Not a pipe: whoever reads it waits for its end, and a terminal goes with its session."""
    kind = os.fstat(stderr).st_mode
    return stat.S_ISREG(kind) or stat.S_ISSOCK(kind)


def is_waiting(directory: Path) -> bool:
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        return not _locked(lock)
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def guard(database: Path, config: Path) -> None:
    """Until nothing waits any more. Ends at once where another one does this."""
    boot = _BOOT_ID.read_text(encoding="ascii").strip()
    while _due(database, boot) is not None:
        lock = os.open(database.parent / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _locked(lock):
                return
            _wait_and_act(database, config, boot)
        finally:
            # Let go first, then look again: a service that made a change just now either sees that nobody holds the
            # lock, or is seen here.
            os.close(lock)


def _wait_and_act(database: Path, config: Path, boot: str) -> None:
    while (due := _due(database, boot)) is not None:
        left = due + _GRACE_S - time.monotonic()
        if left > 0:
            time.sleep(min(left, _LOOK_S))
        elif not _act(config):
            time.sleep(_RETRY_S)
        elif (_due(database, boot) or 0) <= time.monotonic():
            time.sleep(_LOOK_S)  # a service is there, and is about to


def _due(database: Path, boot: str) -> float | None:
    """None too where the database is gone: there is nothing to guard."""
    while database.exists():
        try:
            return next_due(database, boot)
        except sqlite3.Error:
            time.sleep(_LOOK_S)
    return None


def _act(config: Path) -> bool:
    """Whether there is a service, or its work is done. Imports the rest only here: it may be another version by now."""
    from api import log as logging
    from api.log import fields_of
    from api.wiring import build
    from firewall.errors import FirewallError
    from firewall.instance import instead_of_service
    from firewall.settings import load

    logging.configure()
    try:
        settings = load(config)
        with instead_of_service(settings.state.directory) as is_ours:
            if not is_ours:
                return True
            log.warning("the service is gone: the guardian takes back what has run out")
            enforcer = build(settings)
            if has_pins(settings.bpf.pin_root):
                enforcer.start()
            else:  # nothing judges: the store alone
                enforcer.take_back_in_store()
            enforcer.stop(keep=True)
    except FirewallError as error:
        log.error("the guardian cannot take back what has run out", **fields_of(error))
        return False
    except Exception:
        log.exception("the guardian failed")
        return False
    log.info("the guardian is done: the filters go on judging")
    return True


def has_pins(pin_root: Path) -> bool:
    return (pin_root / "maps").exists()


if __name__ == "__main__":
    guard(Path(sys.argv[1]), Path(sys.argv[2]))
