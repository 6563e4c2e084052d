"""Records as the kernel's reporter writes them, for tests without a kernel."""

from __future__ import annotations

import socket
import time
from typing import Any

import numpy as np

from firewall.layout import HOOKS, REASONS, VERDICTS, C
from firewall.report import EVENTS, RECORD


def record(
    source: str = "10.0.0.2",
    destination: str = "10.0.0.1",
    content: bytes = b"",
    *,
    hook: str = "ingress",
    verdict: str = "drop",
    reason: str = "rule",
    streams: int = 1 << EVENTS,
    **fields: Any,
) -> bytes:
    """A UDP packet of 100 bytes from eth0, now; `fields` are those of struct report."""
    row = np.zeros(1, RECORD)
    values: dict[str, Any] = {
        "time": time.monotonic_ns(),
        "ifindex": 2,
        "length": 100,
        "captured": len(content),
        "source_port": 40000,
        "destination_port": 53,
        "protocol": 17,
        "has": C["REPORT_HAS_PORTS"],
        "is_ip": 1,
        "family": C["FAMILY_IPV6"] if ":" in source else C["FAMILY_IPV4"],
        "hook": HOOKS.index(hook),
        "verdict": VERDICTS.index(verdict),
        "reason": REASONS.index(reason),
        "streams": streams,
        **fields,
    }
    for name, value in values.items():
        row[name] = value
    row["source"], row["destination"] = _words(source), _words(destination)
    return row.tobytes() + content


def _words(address: str) -> Any:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return np.frombuffer(socket.inet_pton(family, address).ljust(16, b"\0"), "<u4")
