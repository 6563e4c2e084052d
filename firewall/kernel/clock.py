"""The kernel's tick as wall time: what last_hit is written in (bpf/account.h, tick()). And which boot this is."""

from __future__ import annotations

import math
import time
from pathlib import Path

from firewall.layout import C

_CLOCK_MONOTONIC_COARSE = 6  # clock_gettime(2); it advances once a jiffy, so its resolution is 1 / HZ
HZ = round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))
_INITIAL_JIFFIES = (1 << 32) - 300 * HZ  # include/linux/jiffies.h: wraps 32 bits five minutes after boot


def tick_to_wall(tick: int) -> float:
    """Seconds since 1970 at which a tick ended, now where it has not; 0 for tick 0 (never)."""
    if not tick:
        return 0.0
    ended_at_uptime_s = ((tick + 1 << C["TICK_SHIFT"]) - _INITIAL_JIFFIES) / HZ
    return time.time() - max(0.0, time.monotonic() - ended_at_uptime_s)


def wall_to_tick(moment: float) -> int:
    """The first tick that ends at a moment (seconds since 1970) or after it."""
    ends_at_uptime_s = time.monotonic() - (time.time() - moment)
    return max(1, math.ceil((ends_at_uptime_s * HZ + _INITIAL_JIFFIES) / (1 << C["TICK_SHIFT"])) - 1)


def boot_id() -> str:
    """Another one after each boot; empty where /proc does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
