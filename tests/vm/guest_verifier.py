"""Runs inside the machine: what the verifier says of each program, accepted or not.

`python -m tests.vm.guest_verifier RULES...`: one report line (guest.py) per number of policy rules. What was compiled
is kept where the service keeps it, since compiling is what takes long on an emulated machine.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from firewall.kernel import bpf, bpffs, loader, program_set
from firewall.kernel.assembly import open_maps
from firewall.kernel.program_cache import compiled
from firewall.kernel.source import Capacities, filter_order, is_xdp, question_order
from firewall.settings import State
from tests.vm.guest import run_checks

SCHED_CLS, XDP = 3, 6
COMPILING_S = 1200  # emulated, beside whatever else the host does
_LOG_ERRORS, _LOG_STATISTICS = 1, 4
_LAST_LINES = 25
_STATISTICS = re.compile(r"processed (\d+) insns .*?total_states (\d+) peak_states (\d+)")
PINS = Path("/sys/fs/bpf/vm/verifier")


@contextmanager
def linked(rules: int) -> Iterator[dict[str, bytes]]:
    """The instructions of each program; the maps that they name are open and empty meanwhile."""
    capacities = capacities_of(rules)
    bpffs.ensure(PINS)
    try:
        with ExitStack() as descriptors:
            found: dict[str, bytes] = {}
            for order in (filter_order(capacities), question_order(capacities)):
                programs = compiled(order, State().cache_directory)
                maps = open_maps(programs, PINS, descriptors)
                found |= {name: code.linked(maps) for name, code in programs.programs.items()}
            yield found
    finally:
        program_set.discard(PINS)


def verify(rules: int) -> dict[str, Any]:
    with linked(rules) as programs:
        found = {name: _load(name, code) for name, code in programs.items()}
    refused = {name: facts for name, facts in found.items() if facts["error"]}
    lines = [f"kernel {platform.release()}", *(f"{name}: {facts}" for name, facts in found.items())]
    assert not refused, "\n".join(lines)
    return {"kernel": platform.release(), **found}


def capacities_of(rules: int) -> Capacities:
    """As firewall/kernel/linux.py starts."""
    return Capacities(rules)


def _load(name: str, code: bytes) -> dict[str, Any]:
    kind = XDP if is_xdp(name) else SCHED_CLS
    status, raw = attempt(kind, name, code, _LOG_STATISTICS)
    if status not in (0, errno.E2BIG):
        status, raw = attempt(kind, name, code, _LOG_ERRORS | _LOG_STATISTICS)
    log = raw.decode(errors="replace")
    statistics = _STATISTICS.search(log)
    processed, total, peak = map(int, statistics.groups()) if statistics else (0, 0, 0)
    tail = "\n".join(log.strip().splitlines()[-_LAST_LINES:]) if status else ""
    return {
        "insns": len(code) // 8, "processed": processed, "total_states": total, "peak_states": peak,
        "error": errno.errorcode.get(status, str(status)) if status else "", "log": tail,
    }  # fmt: skip


def attempt(kind: int, name: str, code: bytes, level: int, log_size: int = 1 << 24) -> tuple[int, bytes]:
    """Loads and drops a program: 0 or the errno, and the verifier's log."""
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(log_size)
    attr = struct.pack(
        "=IIQQIIQII16s", kind, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence),
        level, log_size, ctypes.addressof(log), 0, 0, name.encode()[:15],
    )  # fmt: skip
    allowed = tuple(errno.errorcode)
    fd, _ = bpf.call(bpf.PROG_LOAD, attr, f"loading {name}", allowed)
    if fd >= 0:
        os.close(fd)
    return max(-fd, 0), log.value


if __name__ == "__main__":
    loader.TIMEOUT_S = COMPILING_S
    run_checks({f"verify-{rules}": partial(verify, int(rules)) for rules in sys.argv[1:]})
