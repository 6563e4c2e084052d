"""The root file systems: Debian 12 and systemd, for every kernel. One has bcc and this project's Python packages,
the other just what the project's Debian package says that it needs.

Owns the package lists, the virtual environment at /opt/ebpf-fw/.venv and the unit that runs a command. The
project itself is in none of them: boot.py shares that.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.vm import archive, cache

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
HOME = "/opt/ebpf-fw"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "iputils-ping", "ethtool", "procps",
    "python3", "python3-bpfcc", "bpftool", "nftables", "tcpdump", "linux-libc-dev",
)  # fmt: skip
# A system as it is before the project is installed, but for python3-venv and make, which `make install` asks for.
PLAIN_PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps", "iputils-ping", "ethtool", "python3-venv", "make",
)  # fmt: skip
LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
# Wheels for the guest's Python, whatever runs here.
PYTHON = "3.11"
PLATFORMS = (
    "manylinux2014_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_28_x86_64",
)
TEST_PACKAGES = ("pytest", "pytest-xdist", "hypothesis", "scapy")
SIZE = "2G"
UNIT = "vm-command.service"
# Raise it when a change of this module changes the image.
REVISION = 1


def prepare() -> Path:
    """The ext4 image. Built on first use: about a minute and 2 GB, sparse. Needs root."""
    requirements = _requirements()
    made_from = (PACKAGES, LEFT_OUT, requirements, PLATFORMS, _unit(), REVISION)

    def build(directory: Path) -> None:
        _build(directory, PACKAGES, lambda root: _install_python_packages(root, requirements))

    return cache.artifact("root", made_from, build) / "root.ext4"


def prepare_plain(depends: Sequence[str]) -> Path:
    """An ext4 image without the project: `depends` names what its package needs."""
    packages = (*PLAIN_PACKAGES, *depends)
    made_from = (packages, LEFT_OUT, _unit(), REVISION)
    return cache.artifact("plain", made_from, lambda directory: _build(directory, packages)) / "root.ext4"


def _unit() -> list[str]:
    return [(HERE / name).read_text(encoding="ascii") for name in (UNIT, "run_command.sh")]


def _requirements() -> list[str]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        each for each in project["optional-dependencies"]["dev"] if each.partition("==")[0] in TEST_PACKAGES
    ]
    return [*project["dependencies"], *wanted]


def _build(
    directory: Path, packages: Sequence[str], install: Callable[[Path], None] = lambda root: None
) -> None:
    root = directory / "root"
    excludes = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    archive.run(
        "mmdebstrap", "--quiet", "--mode=root", "--variant=essential", f"--include={','.join(packages)}",
        *excludes, "bookworm", str(root), *archive.source_lines(archive.ROOT_SUITES),
    )  # fmt: skip
    install(root)
    _configure(root)
    archive.run("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(directory / "root.ext4"), SIZE)
    shutil.rmtree(root)


def _install_python_packages(root: Path, requirements: list[str]) -> None:
    venv = f"{HOME}/.venv"
    archive.run(
        "chroot", str(root), "/usr/bin/python3", "-m", "venv", "--without-pip", "--system-site-packages", venv
    )
    target = root / venv.lstrip("/") / "lib" / f"python{PYTHON}" / "site-packages"
    archive.run(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
        "--target", str(target), "--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:",
        *(f"--platform={platform}" for platform in PLATFORMS), *requirements,
    )  # fmt: skip
    # Compiling there, at a twentieth of this machine's speed, would cost every boot some seconds.
    archive.run("chroot", str(root), f"{venv}/bin/python", "-m", "compileall", "-q", venv)


def _configure(root: Path) -> None:
    (root / "etc/hostname").write_text("ebpf-fw-vm\n", encoding="ascii")
    (root / "etc/hosts").write_text("127.0.0.1 localhost ebpf-fw-vm\n", encoding="ascii")
    (root / "etc/fstab").write_text("", encoding="ascii")
    (root / "usr/lib/modules").mkdir(exist_ok=True)
    (root / HOME.lstrip("/")).mkdir(exist_ok=True)
    archive.run("chroot", str(root), "passwd", "-d", "root")
    shutil.copy(HERE / UNIT, root / "etc/systemd/system" / UNIT)
    shutil.copy(HERE / "run_command.sh", root / "usr/local/sbin/run_command")
    (root / "usr/local/sbin/run_command").chmod(0o755)
    archive.run("chroot", str(root), "systemctl", "enable", UNIT)
    unwanted = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer")
    archive.run("chroot", str(root), "systemctl", "mask", *unwanted)
