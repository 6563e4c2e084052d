"""Compiles and loads the programs with bcc, in a process of its own: `python -m firewall.kernel.loader`.

LLVM's memory leaves with the process, its messages are the process's standard error, and if it crashes that
is an error message in the service and not its end. The parent's side is load(), the child's main().
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from firewall.errors import KernelRefused, ProgramRejected
from firewall.kernel import bpf
from firewall.kernel.source import PROGRAMS, TC_PROGRAMS, Capacities, build_header_tree, program_text

TIMEOUT_S = 120
LOG_LINES = 25


def load(pin_root: Path, capacities: Capacities) -> str:
    """Pins the maps below pin_root/maps (those pinned there already are used) and the programs below
    pin_root/programs. Returns bcc's version. Raises ProgramRejected with the last lines of the log."""
    order = json.dumps({"pin_root": str(pin_root), "capacities": asdict(capacities)})
    try:
        child = subprocess.run(
            [sys.executable, "-m", "firewall.kernel.loader"],
            input=order, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
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
    pin_root, capacities = Path(order["pin_root"]), Capacities(**order["capacities"])
    try:
        version = _compile(pin_root, capacities)
    except (ImportError, FileNotFoundError, KernelRefused) as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001 - bcc raises bare Exception; its text is all there is
        print(error, file=sys.stderr)
        return 1
    json.dump({"bcc": version}, sys.stdout)
    return 0


def _compile(pin_root: Path, capacities: Capacities) -> str:
    with tempfile.TemporaryDirectory(prefix="ebpf-fw-") as directory:
        os.environ["BCC_KERNEL_SOURCE"] = str(build_header_tree(Path(directory)))
        try:
            import bcc
        except ImportError as error:
            raise ImportError(f"bcc cannot be imported ({error}): install the package python3-bpfcc") from error
        # Standard output carries the answer; what LLVM prints there goes to standard error.
        answer = os.dup(1)
        os.dup2(2, 1)
        try:
            module = bcc.BPF(text=program_text(), cflags=capacities.flags(pin_root))
            for name in PROGRAMS:
                kind = bcc.BPF.SCHED_CLS if name in TC_PROGRAMS.values() else bcc.BPF.XDP
                bpf.pin(module.load_func(name, kind).fd, pin_root / "programs" / name)
        finally:
            os.dup2(answer, 1)
        return str(bcc.__version__)


if __name__ == "__main__":
    sys.exit(main())
