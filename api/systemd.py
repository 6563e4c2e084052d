"""What systemd is told (sd_notify(3), without a library) and asked: is it a stop, or half of a restart?

Owns reading the environment that the unit gives. Outside systemd, telling does nothing and nothing is asked.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import suppress
from typing import Literal

import structlog

log = structlog.get_logger(__name__)

# The unit says its own name (Environment=EBPF_FW_UNIT=%n).
UNIT_VARIABLE = "EBPF_FW_UNIT"
_ANSWER_WITHIN_S = 10  # twice that, and requests under way, fit into the unit's TimeoutStopSec=
Ending = Literal["stop", "restart", "shutdown", "unknown"]


def notify(*lines: str) -> None:
    """`notify("READY=1", "STATUS=...")`. A systemd that does not listen is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall("\n".join(lines).encode())


def reloading() -> None:
    """READY=1 ends it (sd_notify(3))."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def ending() -> Ending:
    """Why this process is told to end: by the job that systemd has for the unit at that moment.

    A restart is one job, "restart", until the unit has stopped. Where there is none, a person sent the signal: that
    is a stop. systemctl asks over systemd's own socket where there is no D-Bus.
    """
    unit = os.environ.get(UNIT_VARIABLE)
    if not unit:
        return "stop"
    state = systemctl("is-system-running")
    if state is not None and state.strip() == "stopping":
        return "shutdown"
    jobs = systemctl("list-jobs", "--no-legend", "--no-pager", "--full", unit)
    if jobs is None:
        return "unknown"
    rows = [line.split() for line in jobs.splitlines()]
    kinds = {row[2] for row in rows if len(row) >= 3 and row[1] == unit}
    return "restart" if kinds & {"restart", "try-restart", "start"} else "stop"


def filters_stay(why: Ending, on_stop: str) -> bool:
    """Whether the filters go on judging when this process ends; `on_stop`: of the settings."""
    if why == "unknown":
        log.warning(
            "systemd does not say whether this is a stop or a restart, so the filters stay",
            hint="to take them off, start the service and stop it again",
        )
    return why != "stop" or on_stop == "keep"


def leaves_nobody(why: Ending) -> bool:
    """Whether nothing of ours runs on until the next start: a unit that is stopped ends with its control group."""
    return why == "stop" and UNIT_VARIABLE in os.environ


def systemctl(*arguments: str) -> str | None:
    """Its output; None where it cannot ask. (is-system-running ends with a failure for every state but one.)"""
    try:
        done = subprocess.run(
            ["systemctl", *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_ANSWER_WITHIN_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    failed = done.returncode != 0 and (arguments[0] != "is-system-running" or not done.stdout)
    return None if failed else done.stdout
