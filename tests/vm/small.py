"""The smallest machine that runs the firewall: a kernel and an initrd of this host's Python and this project, no disk.

Owns that initrd and its boot. The programs were compiled by the host: what is asked of the machine is whether its
kernel takes them and judges with them. Nothing of a distribution runs in it, so there is no systemd, no bcc and no
module; that is tests/vm's longer part.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from pathlib import Path

from tests.vm import archive, boot, cache, frames, kernel
from tests.vm.guest_small import RULES
from tests.vm.root import PROJECT

UNUSED_STDLIB = (
    "test",
    "idlelib",
    "tkinter",
    "ensurepip",
    "lib2to3",
    "turtledemo",
    "pydoc_data",
    "__pycache__",
)
INIT = """#!{python} -B
import os, sys
os.environ["PATH"] = "/usr/bin"
os.chdir("/project")
sys.path[:0] = ["/project", "/packages"]
from tests.vm import guest_small
guest_small.main()
"""


def image(line: str) -> Path:
    """The kernel of a line's newest build, alone."""
    build = kernel.newest(line)

    def unpack(directory: Path) -> None:
        archive.unpack([each for each in kernel.packages(build) if "-modules-" not in each], directory)
        found = next(path for path in directory.rglob("vmlinuz*") if path.is_file())
        shutil.move(found, directory / "image")
        for leftover in [path for path in directory.iterdir() if path.name != "image"]:
            shutil.rmtree(leftover)

    return cache.artifact(f"image-{line}", build, unpack) / "image"


def build_initrd(directory: Path) -> Path:
    """An uncompressed cpio archive below `directory`; unpacking it in the machine takes a moment."""
    tree = directory / "initrd.tree"
    for name in ("dev", "proc", "sys", "run", "tmp", "share"):
        (tree / name).mkdir(parents=True)
    frames.write(tree / "share")
    (tree / "share/compiled").write_text(_compiled(), encoding="ascii")
    python = Path(sys.executable).resolve()
    _copy(python, tree)
    standard = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(
        standard, _inside(tree, standard), ignore=shutil.ignore_patterns(*UNUSED_STDLIB, "config-*")
    )
    site = Path(sysconfig.get_path("purelib"))
    for package in _packages(site):
        _copy(package, tree, tree / "packages" / package.name)
    project = tree / "project"
    for part in _parts():
        shutil.copytree(PROJECT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
    for library in _libraries(
        [path for path in tree.rglob("*") if ".so" in path.name or path.name == python.name]
    ):
        _copy(library, tree)
    init = tree / "init"
    init.write_text(INIT.format(python=python), encoding="ascii")
    init.chmod(0o755)
    names = "\n".join(str(path.relative_to(tree)) for path in [tree, *tree.rglob("*")])
    with (directory / "initrd").open("wb") as file:
        command = ["cpio", "-o", "-H", "newc", "--quiet"]
        subprocess.run(command, cwd=tree, input=names.encode(), stdout=file, check=True)
    return directory / "initrd"


def run(line: str, initrd: Path, timeout_s: float) -> str:
    """What the machine said on its console until it went off. (no_timer_check: a busy host is late, which 5.10 takes
    for a broken board.)"""
    command = [
        "nice", "-n", "5", "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", *boot.accelerator(),
        "-smp", "1", "-m", str(boot.MEMORY_MB),
        "-kernel", str(image(line)), "-initrd", str(initrd),
        "-append", "console=ttyS0 panic=-1 oops=panic quiet mitigations=off no_timer_check",
        "-serial", "stdio",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as machine:
        try:
            said, _ = machine.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            machine.kill()
            said, _ = machine.communicate()
            said += f"\nhad not finished after {timeout_s:.0f} s and was ended".encode()
    return said.decode(errors="replace").replace("\r", "")


def _compiled() -> str:
    """The programs, as the service on this host would compile them. Compiled text knows no kernel."""
    from firewall.kernel.loader import compile_programs
    from firewall.kernel.program_set import filter_order
    from tests.vm.guest_verifier import capacities_of

    return compile_programs(filter_order(capacities_of(RULES))).to_text()


def _parts() -> list[str]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["setuptools"]["packages"]
    return ["bpf", "tests", *sorted({str(each).partition(".")[0] for each in packages})]


def _packages(site: Path) -> Iterable[Path]:
    """What the machine's script imports, by asking a Python that imports it."""
    asked = (
        "import sys, tests.vm.guest_small\n"
        "print(*{m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)}, sep='\\n')"
    )
    found = subprocess.run(
        [sys.executable, "-c", asked], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    inside = [
        Path(each).relative_to(site).parts[0] for each in found.split() if Path(each).is_relative_to(site)
    ]
    for name in sorted(set(inside)):
        yield site / name
        if (libraries := site / f"{name}.libs").exists():
            yield libraries


def _libraries(binaries: Iterable[Path]) -> set[Path]:
    found: set[Path] = set()
    for each in binaries:
        told = subprocess.run(["ldd", str(each)], capture_output=True, text=True, check=False).stdout
        found |= {Path(path) for path in re.findall(r"(/\S+) \(0x", told) if "/initrd.tree/" not in path}
    return found


def _inside(tree: Path, path: Path) -> Path:
    return tree / path.relative_to("/")


def _copy(path: Path, tree: Path, to: Path | None = None) -> None:
    target = to or _inside(tree, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    else:
        shutil.copy(path, target)
