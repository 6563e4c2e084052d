"""Compiles with bcc, in a process of its own: `python -m firewall.kernel.loader`.

LLVM's memory leaves with the process, its messages are the process's standard error, and if it crashes that
is an error message in the service and not its end. The parent's side is compile_programs() and load_offload(), the
child's main(). What is compiled for this host's kernel comes back as instructions; a card's program, which bcc alone
can make for a device, is loaded and pinned by the child.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from firewall.errors import KernelRefused, ProgramRejected
from firewall.kernel import bpf
from firewall.kernel.compiled import Code, Compiled, MapShape
from firewall.kernel.source import OFFLOAD_PARTS, OFFLOAD_PROGRAM, Order, build_header_tree, program_text

TIMEOUT_S = 600  # two seconds are enough on an idle core; an emulated one, or a busy one, needs minutes
LOG_LINES = 25


def compile_programs(order: Order) -> Compiled:
    """Raises ProgramRejected with the last lines of the log."""
    return Compiled.from_text(_run(asdict(order)))


def load_offload(pin_root: Path, device: str, entries: int) -> str:
    """Pins the maps of one device's hardware below pin_root/maps and the program below pin_root/programs, with room for
    `entries` prefixes a family. Returns bcc's version. Raises ProgramRejected with the last lines of the log."""
    return str(json.loads(_run({"pin_root": str(pin_root), "device": device, "entries": entries}))["bcc"])


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
    return child.stdout


def _rejected(status: int, stderr: str) -> ProgramRejected:
    lines = stderr.strip().splitlines()
    log = "\n".join(lines[-LOG_LINES:])
    last = lines[-1] if lines else f"the compiler process ended with status {status} and said nothing"
    hint = "run `ebpf-fw check` to see what this host lacks; the log holds the compiler's or verifier's last lines"
    return ProgramRejected(f"the filter programs could not be loaded: {last}", hint, log=log)


def main() -> int:
    order = json.load(sys.stdin)
    # Standard output carries the answer; what LLVM prints there goes to standard error.
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        with tempfile.TemporaryDirectory(prefix="ebpf-fw-") as directory:
            os.environ["BCC_KERNEL_SOURCE"] = str(build_header_tree(Path(directory)))
            text = _pinned_on_device(order) if "device" in order else _compiled(Order(**order)).to_text()
    except Exception as error:  # bcc raises bare Exception; the text is all there is
        sys.stderr.write(f"{error}\n")
        return 1
    with os.fdopen(answer, "w", encoding="ascii") as out:
        out.write(text)
    return 0


def _compiled(order: Order) -> Compiled:
    bcc = _import_bcc()
    from bcc.libbcc import lib

    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    module = bcc.BPF(text=order.text, cflags=list(order.flags))
    tables = {
        lib.bpf_table_name(module.module, number).decode(): lib.bpf_table_fd_id(module.module, number)
        for number in range(lib.bpf_num_tables(module.module))
    }
    names = {fd: name for name, fd in tables.items()}
    programs = {name: Code.taken(module.dump_func(name), names) for name in order.programs}
    types = _types(tables.values())
    shapes = {name: _shape(fd, bool(types)) for name, fd in tables.items()}
    return Compiled(bcc.__version__, types, shapes, programs)


def _types(maps: Iterable[int]) -> bytes:
    """The type information of maps that were made together. None without CAP_SYS_ADMIN: maps work as well then."""
    ids = {each[0] for fd in maps if (each := bpf.map_types(fd))[0]}
    with suppress(KernelRefused):
        return bpf.types_of(ids.pop()) if ids else b""
    return b""


def _shape(fd: int, has_types: bool) -> MapShape:
    info = bpf.map_info(fd)
    _, key_type, value_type = bpf.map_types(fd) if has_types else (0, 0, 0)
    return MapShape(
        info.type, info.key_size, info.value_size, info.max_entries, info.flags, key_type, value_type
    )


def _pinned_on_device(order: dict[str, Any]) -> str:
    bcc = _import_bcc()
    pin_root, device = Path(order["pin_root"]), order["device"].encode()
    flags = [f'-DPIN_ROOT="{pin_root}"', f"-DOFFLOAD_ENTRIES={order['entries']}", "-Wno-unused-function"]
    module = bcc.BPF(text=program_text(OFFLOAD_PARTS), cflags=flags, device=device)
    program = module.load_func(OFFLOAD_PROGRAM, bcc.BPF.XDP, device=device)
    bpf.pin(program.fd, pin_root / "programs" / OFFLOAD_PROGRAM)
    return json.dumps({"bcc": bcc.__version__})


def _import_bcc() -> Any:
    try:
        import bcc
    except ImportError as error:
        raise ImportError(f"bcc cannot be imported ({error}): install the package python3-bpfcc") from error
    return bcc


if __name__ == "__main__":
    sys.exit(main())
