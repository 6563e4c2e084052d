"""Signs of life for systemd (WatchdogSec=, sd_watchdog_enabled(3)): sent by the loop that answers requests.

Owns when they are sent. A loop that hangs sends none; systemd then ends the process and starts it again, and the
filters go on judging meanwhile. Outside systemd, or without WatchdogSec, nothing is sent.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

# A sign that is late by one turn of a busy machine must not count as none.
SIGNS_A_PERIOD = 4


def period_s(environment: Mapping[str, str], process: int) -> float | None:
    """How long systemd waits for a sign of this process; None where it does not."""
    period, of = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(process))
    if not period.isdecimal() or int(period) == 0 or of != str(process):
        return None
    return int(period) / 1e6


async def beat(notify: Callable[[str], None]) -> None:
    """Until it is cancelled."""
    period = period_s(os.environ, os.getpid())
    while period is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(period / SIGNS_A_PERIOD)
