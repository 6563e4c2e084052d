"""A system without the project, booted again and again on the same disk: what is installed in it stays.

Owns the machine's network cards, the files that it is given and the two lives: the package's, and that of
`make install`. What is done and checked in them is guest_system.py's.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tests.vm import archive, cache, guest, kernel, package, root
from tests.vm.boot import boot

# A life's boots; each ends with an orderly reboot.
PACKAGE_LIFE = (
    ("install_package", "protect_by_config", "native_mode", "refused_native_mode", "restart", "reload",
     "a_broken_config_is_refused_by_a_reload", "kill", "hang", "stop_and_start", "upgrade",
     "an_upgrade_leaves_a_stopped_service_alone", "prepare_reboot"),
    ("after_reboot", "remove", "purge"),
)  # fmt: skip
# What everybody should see once before a change of the installation: some ten minutes.
SHORT_LIFE = (
    ("install_package", "protect_by_config", "restart", "upgrade", "prepare_reboot"),
    ("after_reboot", "remove", "purge"),
)
MAKE_LIFE = (("make_install", "protect_by_config", "make_install_again", "restart", "make_uninstall"),)

# eth0 and eth1 on one hub; eth2's host does GRO for it and takes no orders about that (which takes a tap, in the
# machine's own namespace).
CARDS = (
    "-netdev", "hubport,id=h0,hubid=0", "-device", "virtio-net-pci,netdev=h0,mac=02:00:00:00:00:01",
    "-netdev", "hubport,id=h1,hubid=0", "-device", "virtio-net-pci,netdev=h1,mac=02:00:00:00:00:02",
    "-netdev", "tap,id=h2,ifname=tap0,script=no,downscript=no",
    "-device", "virtio-net-pci,netdev=h2,mac=02:00:00:00:00:03,ctrl_guest_offloads=off",
)  # fmt: skip
TIMEOUT_S = 5400
Report = dict[str, dict[str, object]]


def live(line: str, life: Sequence[Sequence[str]], report: Report) -> None:
    """Puts what each boot reports into `report`, so that it is there when a later one fails. Raises GuestDied."""
    packages = package.prepare()
    image = root.prepare_plain(packages.depends)
    prepared = kernel.prepare(line)
    with tempfile.TemporaryDirectory(prefix="ebpf-fw-system-") as scratch_name:
        scratch = Path(scratch_name)
        share, disk = scratch / "share", scratch / "disk.ext4"
        _fill(share, packages, "make_install" in life[0])
        archive.run("cp", "--sparse=always", str(image), str(disk))
        for checks in life:
            result = boot(prepared, _command(checks), share, TIMEOUT_S, CARDS, ("net.ifnames=0",), disk)
            report |= guest.report(result.output)
            if result.status:
                raise RuntimeError(
                    f"the command ended with {result.status}:\n{result.output}\n{result.console}"
                )


def _command(checks: Sequence[str]) -> str:
    """The copy of the project that every boot makes is not part of this system."""
    return (
        "rm -rf /opt/ebpf-fw; cd /share/project && export PYTHONDONTWRITEBYTECODE=1\n"
        f"python3 -m tests.vm.guest_system {' '.join(checks)}\n"
        "status=$?; mkdir -p /opt/ebpf-fw  # where the next boot puts its copy\n"
        "echo $status >/dev/virtio-ports/status; systemctl reboot; sleep 600"
    )


def _fill(share: Path, packages: package.Packages, with_wheels: bool) -> None:
    project = share / "project"
    project.mkdir(parents=True)
    for name in ("Makefile", "LICENSE", "README.md", "CHANGELOG.md"):
        shutil.copy(root.PROJECT / name, project / name)
    shutil.copytree(root.PROJECT / "LICENSES", project / "LICENSES")
    if with_wheels:
        (share / "wheels").symlink_to(_wheels())
    else:
        (share / "first.deb").symlink_to(packages.first)
        (share / "second.deb").symlink_to(packages.second)


def _wheels() -> Path:
    """What pip asks an index for during `make install`."""
    project = tomllib.loads((root.PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"], "wheel"]

    def download(directory: Path) -> None:
        archive.run(
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--dest", str(directory), "--only-binary=:all:", *wanted,
        )  # fmt: skip

    return cache.artifact("wheels", (wanted, sys.version_info[:2]), download)
