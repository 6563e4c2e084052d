"""Runs as the first process of the smallest machine (small.py): do our programs load and judge on this kernel?

Owns what an init must do, and taking the programs that the host compiled. One report line a check (guest.py).
"""

from __future__ import annotations

import ctypes
import os
from functools import partial
from pathlib import Path

from firewall.kernel import assembly, program_set
from firewall.kernel.compiled import Compiled
from tests.vm import guest_programs
from tests.vm.guest import run_checks

RULES = 64
_RB_POWER_OFF = 0x4321FEDC
_libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, target: str) -> None:
    if _libc.mount(kind.encode(), target.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mounting {kind}")


def main() -> None:
    try:
        for kind, target in (("proc", "/proc"), ("sysfs", "/sys"), ("bpf", "/sys/fs/bpf"), ("tmpfs", "/run")):
            mount(kind, target)
        compiled = Compiled.from_text(Path("/share/compiled").read_text(encoding="ascii"))
        program_set.compiled = lambda order, cache: compiled
        assembly.LOG_LINES = 80
        run_checks(
            {
                "describe": guest_programs.describe,
                "load": partial(guest_programs.load, RULES),
                "judge": guest_programs.judge,
            }
        )
    finally:
        os.sync()
        _libc.reboot(_RB_POWER_OFF)
