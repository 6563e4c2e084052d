"""Runs inside the machine: named checks, each reported as one line, so that one failure hides no other.

Owns the report's form (`CHECK` and a JSON object), written here and read by report(). It must not know QEMU.
"""

from __future__ import annotations

import json
import subprocess
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

MARK = "CHECK "
# For whatever comes in moments on an idle host: this machine is emulated, and its host may be busy.
PATIENCE_S = 600
Check = Callable[[], dict[str, Any]]
E = TypeVar("E", bound=BaseException)


def run_checks(checks: dict[str, Check]) -> None:
    for name, check in checks.items():
        started = time.monotonic()
        try:
            outcome: dict[str, Any] = {"ok": True, "facts": check()}
        except Exception as error:
            # The compiler's or verifier's last lines, where it is a ProgramRejected.
            detail = "\n".join([traceback.format_exc(), getattr(error, "log", None) or ""])
            outcome = {"ok": False, "facts": {}, "error": detail}
        seconds = round(time.monotonic() - started, 1)
        print(MARK + json.dumps({"name": name, "seconds": seconds, **outcome}), flush=True)


def report(output: str) -> dict[str, dict[str, Any]]:
    """The checks by name, from the command's output."""
    found = [json.loads(line.removeprefix(MARK)) for line in output.splitlines() if line.startswith(MARK)]
    return {each["name"]: each for each in found}


def run(command: str, status: int | None = 0) -> str:
    """Standard output and error. `status`: the one that must come, None for any."""
    done = subprocess.run(
        command.split(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if status is not None and done.returncode != status:
        raise AssertionError(f"`{command}` ended with {done.returncode}, not {status}: {done.stdout}")
    return done.stdout


def refusal(kind: type[E], action: Callable[[], object]) -> E:
    """The error that an action must end with."""
    try:
        action()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} came")


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s, but not: {what}")
        time.sleep(0.2)
