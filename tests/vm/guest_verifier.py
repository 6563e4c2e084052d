"""Runs inside the machine: what the verifier says of each program, accepted or not.

`python -m tests.vm.guest_verifier RULES...`: one report line (guest.py) per number of policy rules. bcc
compiles, and bpf(2) loads what it compiled: bcc asks for no statistics, and keeps to itself what the log says
of a program that is too complex.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import struct
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from firewall.kernel import bpf, bpffs, program_set
from firewall.kernel.source import (
    PROGRAMS,
    TEST_PARTS,
    TEST_PROGRAMS,
    Capacities,
    build_header_tree,
    is_xdp,
    program_text,
)
from tests.vm.guest import run_checks

PIN_ROOT = Path("/sys/fs/bpf/verifier")
SCHED_CLS, XDP = 3, 6
_LOG_ERRORS, _LOG_STATISTICS = 1, 4
_LAST_LINES = 25
_open: list[object] = []
_STATISTICS = re.compile(r"processed (\d+) insns .*?total_states (\d+) peak_states (\d+)")


def compiled(rules: int) -> dict[str, bytes]:
    """The instructions of each program. The maps that they name are pinned no more but stay open."""
    import bcc

    pins = PIN_ROOT / str(rules)
    program_set.discard(pins)
    bpffs.ensure(pins / "maps")
    capacities = capacities_of(rules)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["BCC_KERNEL_SOURCE"] = str(build_header_tree(Path(directory)))
        flags = capacities.flags(pins)
        module = bcc.BPF(text=program_text(), cflags=flags)
        tests = bcc.BPF(text=program_text(TEST_PARTS), cflags=[*flags, "-Wno-unused-function"])
    program_set.discard(pins)
    _open.extend((module, tests))
    found = {name: module.dump_func(name) for name in PROGRAMS}
    return found | {name: tests.dump_func(name) for name in TEST_PROGRAMS}


def verify(rules: int) -> dict[str, Any]:
    found = {name: _load(name, code) for name, code in compiled(rules).items()}
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
    run_checks({f"verify-{rules}": partial(verify, int(rules)) for rules in sys.argv[1:]})
