"""A Debian kernel to boot: its image, its modules on a disk of their own, and an initrd that finds the root.

Owns choosing the newest build of a kernel line and unpacking it below the cache. The kernel is never
installed on this host, and no script of its package runs.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.vm import archive, cache

# Line to the packages that depend on its newest build.
LINES = {
    "5.10": "linux-image-amd64",
    "6.1": "linux-image-amd64",
    "6.12": "linux-image-6.12-amd64",
    "7": "linux-image-amd64",  # what trixie-backports has: 7.2 was there, now 7.3
}
# Modules that this test system can have a use for; the rest (graphics, sound, ...) is left out.
MODULE_DIRECTORIES = (
    "arch", "block", "crypto", "drivers/block", "drivers/char", "drivers/net", "drivers/virtio", "fs", "lib",
    "net",
)  # fmt: skip
UNUSED_DIRECTORIES = (
    "drivers/net/wireless",
    "drivers/net/ethernet",
    "fs/xfs",
    "fs/btrfs",
    "fs/ocfs2",
    "net/mac80211",
)
INITRD_MODULES = ("virtio_pci", "virtio_blk", "ext4")
INITRD_REVISION = 1


@dataclass(frozen=True)
class Build:
    """One build of a kernel line. `abi`: what `uname -r` says. `version`: of its packages."""

    line: str
    abi: str
    version: str


@dataclass(frozen=True)
class Kernel:
    build: Build
    image: Path
    initrd: Path
    modules: Path
    """An ext4 file system to mount on /lib/modules."""


def newest(line: str) -> Build:
    builds = []
    for fields in archive.stanzas(LINES[line]):
        found = re.search(r"linux-image-(\S+) \(= (\S+)\)", fields["Depends"])
        if found and fields["Version"].startswith(f"{line}."):
            builds.append(Build(line, found[1], found[2]))
    if not builds:
        raise LookupError(f"the archive has no kernel {line}: {LINES[line]} depends on others")
    return max(builds, key=lambda build: [int(number) for number in re.findall(r"\d+", build.version)])


def prepare(line: str) -> Kernel:
    """Downloads and unpacks on first use. Needs about 200 MB a kernel."""
    build = newest(line)

    def unpack(directory: Path) -> None:
        archive.unpack(packages(build), directory)
        if not (directory / "lib").exists():
            (directory / "lib").symlink_to("usr/lib")
        release = directory / "lib/modules" / build.abi
        # Where it is since 7.x, and where it was.
        images = (release / "vmlinuz", directory / "boot" / f"vmlinuz-{build.abi}")
        shutil.move(next(path for path in images if path.exists()), directory / "vmlinuz")
        _prune(release)
        _decompress(release)
        archive.run("depmod", "-b", str(directory), build.abi)
        archive.run(
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-d",
            str(directory / "lib/modules"),
            str(directory / "modules.ext4"),
            "400M",
        )
        _write_initrd(directory, release)
        for leftover in ("boot", "usr", "lib"):
            shutil.rmtree(directory / leftover, ignore_errors=True)
        (directory / "lib").unlink(missing_ok=True)

    made = cache.artifact(
        f"kernel-{line}", (build, MODULE_DIRECTORIES, UNUSED_DIRECTORIES, INITRD_REVISION), unpack
    )
    return Kernel(build, made / "vmlinuz", made / "initrd", made / "modules.ext4")


def packages(build: Build) -> list[str]:
    """The kernel's image and modules: one package, and since 7.x others that it depends on."""
    image = f"linux-image-{build.abi}"
    depends = next(archive.stanzas(f"{image}={build.version}"))["Depends"]
    parts = re.findall(rf"linux-(?:binary|modules)-{re.escape(build.abi)}", depends)
    return [f"{name}={build.version}" for name in (image, *parts)]


def _prune(release: Path) -> None:
    kernel = release / "kernel"
    kept = [kernel / name for name in MODULE_DIRECTORIES]
    unused = [kernel / name for name in UNUSED_DIRECTORIES]
    for module in list(kernel.rglob("*.ko*")):
        parents = set(module.parents)
        if not parents.intersection(kept) or parents.intersection(unused):
            module.unlink()


def _decompress(release: Path) -> None:
    """busybox in the initrd reads no compressed modules, and the tools of an older root not every format."""
    for tool, suffix in (("xz", ".xz"), ("zstd", ".zst")):
        found = [str(path) for path in release.rglob(f"*.ko{suffix}")]
        for at in range(0, len(found), 500):
            options = ["--rm", "-q"] if tool == "zstd" else []
            archive.run(tool, "-d", *options, *found[at : at + 500])


def _write_initrd(directory: Path, release: Path) -> None:
    """busybox, the modules that reach the disks, and the script that mounts them and goes on to the root."""
    tree = directory / "initrd.tree"
    for name in ("bin", "proc", "sys", "dev", "root", "modules"):
        (tree / name).mkdir(parents=True)
    archive.unpack(["busybox-static"], tree)
    modules = _with_dependencies(release, INITRD_MODULES)
    for module in modules:
        shutil.copy(module, tree / "modules")
    loads = "\n".join(f"insmod /modules/{module.name} 2>/dev/null" for module in modules)
    script = (Path(__file__).parent / "initrd.sh").read_text(encoding="ascii")
    (tree / "init").write_text(script.replace("@LOAD_MODULES@", loads), encoding="ascii")
    (tree / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(tree)) for path in [tree, *tree.rglob("*")])
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"],
        cwd=tree,
        input=names.encode(),
        capture_output=True,
        check=True,
    )
    (directory / "initrd").write_bytes(gzip.compress(packed.stdout, 1))
    shutil.rmtree(tree)


def _with_dependencies(release: Path, names: tuple[str, ...]) -> list[Path]:
    """In an order in which insmod can load them. What is built in is passed over."""
    depends: dict[str, list[str]] = {}
    for line in (release / "modules.dep").read_text(encoding="ascii").splitlines():
        module, _, rest = line.partition(":")
        depends[module] = rest.split()
    by_name = {Path(module).stem.replace("-", "_"): module for module in depends}
    ordered: list[str] = []
    for name in names:
        if name in by_name:
            ordered += [*reversed(depends[by_name[name]]), by_name[name]]
    # Modules that ext4 asks for by alias and not by symbol.
    for alias in ("crc32c_generic", "crc32c_intel"):
        if alias in by_name:
            ordered = [*reversed(depends[by_name[alias]]), by_name[alias], *ordered]
    return [release / module for module in dict.fromkeys(ordered)]
