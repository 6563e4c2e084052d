"""Which capabilities a process has (capabilities(7)).

Owns their numbers and reading them from /proc. It must not say who needs which.
"""

from __future__ import annotations

from pathlib import Path

# include/uapi/linux/capability.h
NET_ADMIN, SYS_ADMIN, PERFMON, BPF = 12, 21, 38, 39


def effective(status: str) -> frozenset[int]:
    """`status`: the text of /proc/PID/status."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    bits = int(fields["CapEff"], 16)
    return frozenset(bit for bit in range(bits.bit_length()) if bits >> bit & 1)


def has(capability: int) -> bool:
    return capability in effective(Path("/proc/self/status").read_text(encoding="utf-8", errors="replace"))
