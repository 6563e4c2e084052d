"""Compiles and loads the programs with bcc, in a process of its own: `python -m firewall.kernel.loader`.

LLVM's memory leaves with the process, its messages are the process's standard error, and if it crashes that
is an error message in the service and not its end. The parent's side is load(), the child's main().
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from firewall.errors import ProgramRejected
from firewall.kernel import bpf
from firewall.kernel.source import (
    OFFLOAD_PARTS,
    OFFLOAD_PROGRAM,
    PROGRAMS,
    TEST_PARTS,
    TEST_PROGRAMS,
    Capacities,
    build_header_tree,
    is_xdp,
    program_text,
)

TIMEOUT_S = 120
LOG_LINES = 25


def load(pin_root: Path, capacities: Capacities) -> str:
    """Pins the maps below pin_root/maps (those pinned there already are used) and the programs below
    pin_root/programs. Returns bcc's version. Raises ProgramRejected with the last lines of the log."""
    return _run({"pin_root": str(pin_root), "capacities": asdict(capacities)})


def load_tests(pin_root: Path, capacities: Capacities) -> None:
    """The programs that judge packets for questions, over the maps below pin_root/maps; pins them below
    pin_root/programs."""
    _run({"pin_root": str(pin_root), "capacities": asdict(capacities), "tests": True})


def load_offload(pin_root: Path, device: str, entries: int) -> str:
    """The same for the program and maps of one device's hardware, with room for `entries` prefixes a family."""
    return _run({"pin_root": str(pin_root), "device": device, "entries": entries})


def bcc_version() -> str | None:
    """Of the bcc that would be used, without importing it and LLVM with it."""
    found = importlib.util.find_spec("bcc")
    file = Path(found.origin).parent / "version.py" if found and found.origin else None
    text = file.read_text(encoding="utf-8") if file and file.exists() else ""
    version = re.search(r"__version__ = ['\"]([^'\"]+)", text)
    return version[1] if version else None


def _run(order: dict[str, object]) -> str:
    try:
        child = subprocess.run(
            [sys.executable, "-m", "firewall.kernel.loader"],
            input=json.dumps(order), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            cwd=Path(__file__).resolve().parent.parent.parent,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProgramRejected(f"the compiler process did not finish: {error}") from error
    if child.returncode:
        raise _rejected(child.returncode, child.stderr)
    return str(json.loads(child.stdout)["bcc"])


def _rejected(status: int, stderr: str) -> ProgramRejected:
    lines = stderr.strip().splitlines()
    log = "\n".join(lines[-LOG_LINES:])
    last = lines[-1] if lines else f"the compiler process ended with status {status} and said nothing"
    hint = "run `ebpf-fw check` to see what this host lacks; the log holds the compiler's or verifier's last lines"
    return ProgramRejected(f"the filter programs could not be loaded: {last}", hint, log=log)


def main() -> int:
    order = json.load(sys.stdin)
    try:
        version = _compile(_job(order), Path(order["pin_root"]))
    except Exception as error:  # bcc raises bare Exception; the text is all there is
        sys.stderr.write(f"{error}\n")
        return 1
    json.dump({"bcc": version}, sys.stdout)
    return 0


class _Job(NamedTuple):
    """What to compile: a text with its flags, the entry points in it and whether each is XDP, for a device."""

    text: str
    flags: list[str]
    is_xdp: dict[str, bool]
    device: bytes | None


def _job(order: dict[str, Any]) -> _Job:
    pin_root = Path(order["pin_root"])
    if "device" in order:
        flags = [f'-DPIN_ROOT="{pin_root}"', f"-DOFFLOAD_ENTRIES={order['entries']}", "-Wno-unused-function"]
        return _Job(program_text(OFFLOAD_PARTS), flags, {OFFLOAD_PROGRAM: True}, order["device"].encode())
    capacities = Capacities(**order["capacities"])
    if "tests" in order:
        flags = [*capacities.flags(pin_root), "-Wno-unused-function"]
        return _Job(program_text(TEST_PARTS), flags, dict.fromkeys(TEST_PROGRAMS, True), None)
    kinds = {name: is_xdp(name) for name in PROGRAMS}
    return _Job(program_text(), capacities.flags(pin_root), kinds, None)


def _compile(job: _Job, pin_root: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="ebpf-fw-") as directory:
        os.environ["BCC_KERNEL_SOURCE"] = str(build_header_tree(Path(directory)))
        try:
            import bcc
        except ImportError as error:
            raise ImportError(
                f"bcc cannot be imported ({error}): install the package python3-bpfcc"
            ) from error
        # Standard output carries the answer; what LLVM prints there goes to standard error.
        answer = os.dup(1)
        os.dup2(2, 1)
        try:
            module = bcc.BPF(text=job.text, cflags=job.flags, device=job.device)
            for name, for_xdp in job.is_xdp.items():
                kind = bcc.BPF.XDP if for_xdp else bcc.BPF.SCHED_CLS
                bpf.pin(module.load_func(name, kind, device=job.device).fd, pin_root / "programs" / name)
        finally:
            os.dup2(answer, 1)
        return str(bcc.__version__)


if __name__ == "__main__":
    sys.exit(main())
