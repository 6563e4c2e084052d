"""The netdevsim module for a Debian kernel, built from that kernel's source: offload without hardware.

Owns building it below the cache. No Debian kernel has it. It takes programs and maps for a device and never
runs them: it proves load, attach, maps and removal, not filtering.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.vm import archive, cache
from tests.vm.kernel import Build

SOURCE = "drivers/net/netdevsim"
# What a device's map holds at most: NSIM_BPF_MAX_KEYS, 2 in the source, too few for a test of a full table.
MAX_KEYS = 64
_MAX_KEYS = re.compile(r"^(#define NSIM_BPF_MAX_KEYS)\s+\d+$", re.MULTILINE)
# From loaded to a device `eni1np1` that is up.
SET_UP = (
    "modprobe psample; modprobe devlink 2>/dev/null; insmod /share/netdevsim.ko"
    ' && echo "1 1" >/sys/bus/netdevsim/new_device && udevadm settle && ip link set eni1np1 up'
)


def prepare(build: Build) -> Path:
    """netdevsim.ko. Downloads about 150 MB of source on first use."""
    made = cache.artifact(
        f"netdevsim-{build.line}", (build, MAX_KEYS), lambda directory: _build(directory, build)
    )
    return made / "netdevsim.ko"


def _build(directory: Path, build: Build) -> None:
    tree = directory / "tree"
    tree.mkdir()
    archive.unpack(_packages(build), tree)
    archive.run(
        "tar", "-C", str(tree), "--strip-components=1",
        "-xf", str(tree / f"usr/src/linux-source-{build.line}.tar.xz"), f"linux-source-{build.line}/{SOURCE}",
    )  # fmt: skip
    source = tree / SOURCE / "bpf.c"
    text, count = _MAX_KEYS.subn(rf"\1 {MAX_KEYS}", source.read_text(encoding="utf-8"))
    if not count:
        raise LookupError(f"{source.name} of {build.version} has no NSIM_BPF_MAX_KEYS")
    source.write_text(text, encoding="utf-8")
    headers = tree / f"usr/src/linux-headers-{build.abi}"
    common = tree / f"usr/src/linux-headers-{_flavourless(build)}-common"
    # Module BTF needs the kernel's vmlinux and pahole, and nothing here reads it.
    archive.run(
        "make", "-C", str(headers), "-f", str(common / "Makefile"), f"M={tree / SOURCE}", "CC=gcc-12",
        "CONFIG_NETDEVSIM=m", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules",
    )  # fmt: skip
    shutil.move(tree / SOURCE / "netdevsim.ko", directory / "netdevsim.ko")
    shutil.rmtree(tree)


def _flavourless(build: Build) -> str:
    return build.abi.removesuffix("-amd64")


def _packages(build: Build) -> list[str]:
    headers = f"linux-headers-{build.abi}"
    depends = next(archive.stanzas(f"{headers}={build.version}"))["Depends"]
    kbuild = re.search(r"linux-kbuild-[^\s,]+", depends)
    if kbuild is None:
        raise LookupError(f"{headers} names no linux-kbuild package: {depends}")
    names = (headers, f"linux-headers-{_flavourless(build)}-common", kbuild[0], f"linux-source-{build.line}")
    return [f"{name}={build.version}" for name in names]
