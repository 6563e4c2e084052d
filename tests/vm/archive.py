"""Debian's archive, read with an apt of our own: which packages there are, and their files unpacked.

Owns the private apt directory and downloads. It must not install anything on this host, whose own apt sources
and package lists are not touched.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.vm import cache

MIRROR = os.environ.get("EBPF_FW_VM_MIRROR", "http://deb.debian.org")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
ROOT_SUITES = (
    ("debian", "bookworm"),
    ("debian", "bookworm-updates"),
    ("debian-security", "bookworm-security"),
)
KERNEL_SUITES = (*ROOT_SUITES, ("debian-security", "bullseye-security"), ("debian", "trixie-backports"))
LISTS_AGE_S = 12 * 3600


def source_lines(suites: Sequence[tuple[str, str]]) -> list[str]:
    return [f"deb [signed-by={KEYRING}] {MIRROR}/{part} {suite} main" for part, suite in suites]


def download(packages: Sequence[str], directory: Path) -> list[Path]:
    """The .deb files of `name` or `name=version`, in the same order as asked."""
    files: list[Path] = []
    for package in packages:
        before = set(directory.glob("*.deb"))
        run("apt-get", "-q", "download", package, cwd=directory, apt=True)
        files += set(directory.glob("*.deb")) - before
    return files


def unpack(packages: Sequence[str], directory: Path) -> None:
    """Puts the files of packages below a directory; no script of theirs runs."""
    for deb in download(packages, directory):
        run("dpkg-deb", "-x", str(deb), str(directory))
        deb.unlink()


def stanzas(*packages: str) -> Iterator[dict[str, str]]:
    """The fields of every version of the packages that the archive holds."""
    for stanza in run("apt-cache", "show", *packages, apt=True).strip().split("\n\n"):
        yield dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.MULTILINE))


def run(*command: str, cwd: Path | None = None, apt: bool = False) -> str:
    """Standard output. Raises RuntimeError with standard error."""
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    if apt:
        environment["APT_CONFIG"] = str(_apt_config())
    done = subprocess.run(
        ["nice", "-n", "5", *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-20:])
        raise RuntimeError(f"`{' '.join(command)}` failed with {done.returncode}: {tail}")
    return done.stdout


def _apt_config() -> Path:
    """Fetches the package lists when those here are old."""
    base = cache.directory() / "apt"
    config = base / "apt.conf"
    if config.exists() and time.time() - config.stat().st_mtime < LISTS_AGE_S:
        return config
    for part in ("state/lists/partial", "cache/archives/partial"):
        (base / part).mkdir(parents=True, exist_ok=True)
    (base / "sources.list").write_text("\n".join(source_lines(KERNEL_SUITES)) + "\n", encoding="ascii")
    fresh = base / "apt.conf.new"
    fresh.write_text(
        f'Dir::State "{base}/state";\nDir::State::status "/dev/null";\nDir::Cache "{base}/cache";\n'
        f'Dir::Etc::sourcelist "{base}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        'APT::Architecture "amd64";\nAcquire::Languages "none";\nAPT::Sandbox::User "root";\n',
        encoding="ascii",
    )
    update = ["apt-get", "-q", "update", "--error-on=any"]
    done = subprocess.run(
        update, env={**os.environ, "APT_CONFIG": str(fresh)}, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        # Lists of yesterday will do where the archive cannot be reached.
        if config.exists():
            return config
        raise RuntimeError(f"`{' '.join(update)}` failed with {done.returncode}; its messages are above")
    return fresh.rename(config)
