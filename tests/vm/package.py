"""The Debian package for the virtual machines: this checkout's, and a later version of it with other programs.

Owns building both below the cache. They are built by `make deb`, for this host's Python, which must be the root's.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.vm import archive, cache, root

# What decides the package's content.
PARTS = (
    "api",
    "bpf",
    "cli",
    "feeds",
    "firewall",
    "integrations",
    "scripts",
    "systemd",
    "docs",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
)
VERSIONS = ("0.0.1-1", "0.0.1-2")


@dataclass(frozen=True)
class Packages:
    """`depends`: names of the packages that the first needs, none of them a part of every Debian."""

    first: Path
    second: Path
    depends: tuple[str, ...]


def prepare() -> Packages:
    """About two minutes on first use."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" != root.PYTHON:
        raise RuntimeError(f"the machine's Debian has Python {root.PYTHON}; build the package on such a host")
    made = cache.artifact("package", (_digest(), VERSIONS), _build)
    first, second = (made / f"{version}.deb" for version in VERSIONS)
    depends = archive.run("dpkg-deb", "-f", str(first), "Depends")
    names = [re.split(r"[ (|]", each.strip())[0] for each in depends.split(",")]
    return Packages(first, second, tuple(dict.fromkeys(names)))


def _digest() -> str:
    seen = hashlib.sha256()
    for part in PARTS:
        top = root.PROJECT / part
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                seen.update(f"{path.relative_to(root.PROJECT)}\0".encode() + path.read_bytes())
    return seen.hexdigest()


def _build(directory: Path) -> None:
    """From a copy of the checkout: a build of the operator's own may be under way in it."""
    first, second = (directory / f"{version}.deb" for version in VERSIONS)
    checkout = directory / "checkout"
    checkout.mkdir()
    for part in (*PARTS, "Makefile", "LICENSE", "LICENSES"):
        source = root.PROJECT / part
        if source.is_dir():
            shutil.copytree(source, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, checkout / part)
    archive.run("env", f"DEB_VERSION={VERSIONS[0]}", "make", "-C", str(checkout), "deb")
    (built,) = (checkout / "build").glob("*.deb")
    shutil.move(built, first)
    shutil.rmtree(checkout)
    _make_second(directory / "unpacked", first, second)


def _make_second(tree: Path, first: Path, second: Path) -> None:
    """The same package with a later version, and programs of another text: an upgrade must replace them."""
    archive.run("dpkg-deb", "-R", str(first), str(tree))
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace(VERSIONS[0], VERSIONS[1]))
    program = tree / "usr/lib/ebpf-fw/bpf/decide.h"
    program.write_text(program.read_text().replace("#endif", "/* later */\n#endif"))
    os.chmod(program, 0o644)
    archive.run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(tree), str(second))
    shutil.rmtree(tree)
