"""Boots a kernel on the root image under QEMU, runs one command in it and brings back its output and status.

Owns the machine's command line, the share and noticing that a machine died. It must not know what the
command does. Nothing that the machine writes survives it, but on a disk that a test gives; its
network is a namespace that ends with it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.vm import root
from tests.vm.kernel import Kernel
from tests.vm.share import copy_project

MEMORY_MB = 2048
CPUS = 2
CONSOLE_LINES = 40
_PANIC = re.compile(r"Kernel panic|end Kernel panic|BUG: unable to handle|Oops:")


@dataclass(frozen=True)
class Result:
    """`output`: of the command, standard error included. `console`: what kernel and systemd said."""

    status: int
    output: str
    console: str
    seconds: float


class GuestDied(Exception):
    """The machine went off, or was ended, before the command gave its status."""

    def __init__(self, why: str, output: str, console: str) -> None:
        tail = "\n".join(console.splitlines()[-CONSOLE_LINES:])
        super().__init__(f"{why}\n--- output\n{output}\n--- console\n{tail}")
        self.output, self.console = output, console


def boot(
    kernel: Kernel,
    command: str,
    share: Path | None = None,
    timeout_s: float = 600,
    arguments: Iterable[str] = (),
    parameters: Sequence[str] = (),
    disk: Path | None = None,
) -> Result:
    """Runs a shell command as root in /opt/ebpf-fw, which holds a copy of the project, once systemd is up.

    `share`: a directory whose content is at /share in the machine, read-only; `arguments`: more for QEMU;
    `parameters`: more for the kernel; `disk`: a copy of a root image, which keeps what the machine writes, in the
    place of the usual one. Raises GuestDied.
    """
    image = disk or root.prepare()
    with tempfile.TemporaryDirectory(prefix="ebpf-fw-vm-") as scratch_name:
        scratch = Path(scratch_name)
        shared = scratch / "share"
        copy_project(shared, share)
        (shared / "command").write_text(command + "\n", encoding="utf-8")
        started = time.monotonic()
        why = _run([*_qemu(kernel, image, disk is None, shared, scratch, parameters), *arguments], timeout_s)
        output, console = _read(scratch / "output"), _read(scratch / "console")
        status = _read(scratch / "status").strip()
        if not status.isdecimal():
            panic = next((line for line in console.splitlines() if _PANIC.search(line)), None)
            raise GuestDied(
                f"kernel {kernel.build.abi}: {panic or why or 'went off without a status'}", output, console
            )
        return Result(int(status), output, console, time.monotonic() - started)


def _qemu(
    kernel: Kernel, image: Path, forget: bool, shared: Path, scratch: Path, parameters: Sequence[str]
) -> list[str]:
    append = [
        "console=ttyS0",
        "panic=-1",
        "oops=panic",
        "quiet",
        "mitigations=off",
        "no_timer_check",
        "systemd.mask=serial-getty@ttyS0.service",  # nobody logs in
        *parameters,
    ]
    ports = [
        option
        for name in ("output", "status")
        for option in (
            "-chardev", f"file,id={name},path={scratch / name}",
            "-device", f"virtserialport,chardev={name},name={name}",
        )
    ]  # fmt: skip
    return [
        "nice", "-n", "5", "unshare", "--net", "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot",
        *accelerator(),
        "-smp", str(CPUS), "-m", str(MEMORY_MB),
        "-kernel", str(kernel.image), "-initrd", str(kernel.initrd), "-append", " ".join(append),
        "-chardev", f"file,id=console,path={scratch / 'console'}", "-serial", "chardev:console",
        # Whoever reads the disk later asks this host's page cache: nobody waits for the host's own disk.
        "-drive", f"file={image},if=virtio,format=raw,cache=unsafe,snapshot={'on' if forget else 'off'}",
        "-drive", f"file={kernel.modules},if=virtio,format=raw,snapshot=on",
        "-device", "virtio-serial-pci", *ports, "-device", "virtio-rng-pci",
        "-virtfs", f"local,path={shared},mount_tag=share,security_model=none,readonly=on",
    ]  # fmt: skip


def accelerator() -> list[str]:
    """Emulation, unless the processor says that it can do better: /dev/kvm may be there and not work."""
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    if re.search(r"\b(vmx|svm)\b", flags) and Path("/dev/kvm").exists():
        return ["-accel", "kvm", "-cpu", "host"]
    # With what "max" has, Linux takes the HPET for its clock, which is a way out of the emulation whenever somebody
    # asks for the time; and QEMU 7.2 emulates AVX2 wrongly: numpy's argsort leaves its result unsorted. Without RDRAND
    # there is nothing random yet when the smallest machine's first process, Python, asks for it.
    return ["-accel", "tcg,thread=multi", "-cpu", "Nehalem,+rdrand"]


def _run(command: list[str], timeout_s: float) -> str | None:
    """What went wrong, in words."""
    try:
        done = subprocess.run(command, timeout=timeout_s, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        return f"had not finished after {timeout_s:.0f} s and was ended"
    # QEMU that is told to end does so with 0 and says here who told it.
    said = done.stderr.strip()
    return f"QEMU ended with {done.returncode}: {said}" if done.returncode or said else None


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


if __name__ == "__main__":
    # Debugging by hand: python -m tests.vm.boot 6.1 'uname -a'
    from tests.vm import kernel as kernels

    result = boot(kernels.prepare(sys.argv[1]), sys.argv[2])
    print(result.output, end="")
    print(f"status {result.status} after {result.seconds:.1f} s", file=sys.stderr)
    sys.exit(result.status)
