"""Whose a loaded program is, as far as the host tells: who pinned it, which process holds it.

Reads /sys/fs/bpf and /proc and changes nothing. What may not be read is passed over, so no owner is no proof.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from firewall.errors import FirewallError
from firewall.kernel import bpf, opening

_SEARCH_S = 1.0  # a host may have a million descriptors
_MOST_NAMED = 3


def describe(program_id: int) -> str:
    """`program 41 (xdp_prog), pinned at /sys/fs/bpf/x, held by lb (pid 7)`."""
    name = _name(program_id)
    return ", ".join([f"program {program_id}" + (f" ({name})" if name else ""), *traces(program_id)])


def traces(program_id: int) -> list[str]:
    """`pinned at /sys/fs/bpf/x`, `held by lb (pid 7)`; empty where nothing is found."""
    pins = [f"pinned at {path}" for path in _first(pins_of(program_id))]
    return pins + [f"held by {process}" for process in _first(holders_of(program_id))]


def _first(found: Iterator[str]) -> list[str]:
    end = time.monotonic() + _SEARCH_S
    named: list[str] = []
    for each in found:
        if each:
            named.append(each)
        if len(named) == _MOST_NAMED or time.monotonic() > end:
            break
    return named


def _name(program_id: int) -> str:
    with suppress(FirewallError):
        fd = opening.open_program(program_id)
        if fd is not None:
            try:
                return bpf.program_info(fd).name
            finally:
                os.close(fd)
    return ""


def pins_of(program_id: int) -> Iterator[str]:
    """Paths below /sys/fs/bpf; empty strings between them, so that a caller can stop."""
    for fd, path in opening.pinned(opening.BPF_FS):
        yield str(path) if program_id in _programs(f"/proc/self/fdinfo/{fd}") else ""


def holders_of(program_id: int) -> Iterator[str]:
    """Processes with a descriptor of the program or of a bpf link to it, ourselves left out."""
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        yield ""
        with suppress(OSError):
            if any(program_id in _programs(f"{process}/fdinfo/{fd}") for fd in _bpf_descriptors(process)):
                yield f"{(process / 'comm').read_text().strip()} (pid {process.name})"


def _bpf_descriptors(process: Path) -> Iterator[str]:
    for each in os.listdir(process / "fd"):
        with suppress(OSError):
            if "bpf" in os.readlink(process / "fd" / each):
                yield each


def _programs(fdinfo: str) -> list[int]:
    return [int(number) for number in re.findall(r"^prog_id:\s*(\d+)$", Path(fdinfo).read_text(), re.M)]
