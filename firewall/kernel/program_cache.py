"""Compiled programs kept as files, so that a start need not compile what an earlier one did.

Owns when a kept one is the one that is wanted: the same text and flags, compiler, headers, machine and kernel. Only
files that root (or whoever runs the service) alone can write are believed. Every failure here means compiling, no more.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import structlog

from firewall.kernel.compiled import Compiled
from firewall.kernel.loader import bcc_version, compile_programs
from firewall.kernel.source import UAPI, Order

log = structlog.get_logger()

MOST_FILES = 32
_FORM = 1  # of the files, and of what the compiling process takes from the compiler
_SUFFIX = ".programs"


def compiled(order: Order, directory: Path | None) -> Compiled:
    """`directory`: None to compile always. Raises ProgramRejected."""
    if directory is None:
        return compile_programs(order)
    path = directory / f"{_key(order)}{_SUFFIX}"
    kept = _read(path)
    if kept is None:
        kept = compile_programs(order)
        _write(path, kept)
    return kept


def _key(order: Order) -> str:
    parts = [str(_FORM), order.text, *order.flags, *order.programs, platform.machine(), platform.release()]
    parts += [f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in _compiler_files()]
    return hashlib.sha256("\0".join([*parts, str(bcc_version())]).encode()).hexdigest()


def _compiler_files() -> Iterator[tuple[Path, os.stat_result]]:
    """Files that change with the compiler and with the headers."""
    libraries = sorted(path for root in ("/usr/lib", "/lib64") for path in Path(root).glob("*/libbcc.so.0"))
    for path in [*libraries, *(Path("/usr/include/linux") / f"{name}.h" for name in UAPI)]:
        with suppress(OSError):
            yield path, path.stat()


def _read(path: Path) -> Compiled | None:
    """None where there is none to believe."""
    try:
        for place in (path.parent, path):
            status = place.lstat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                log.warning(
                    "programs are compiled anew: others may write where they are kept", path=str(place)
                )
                return None
        digest, _, text = path.read_text(encoding="ascii").partition("\n")
        if digest != hashlib.sha256(text.encode()).hexdigest():
            return None
        os.utime(path)
        return Compiled.from_text(text)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, content: Compiled) -> None:
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = content.to_text()
        with open(beside, "w", encoding="ascii", opener=_private) as out:
            out.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        beside.replace(path)
        _forget_old(path.parent)
    except OSError as error:
        log.warning("compiled programs cannot be kept", path=str(path.parent), error=str(error))
        with suppress(OSError):
            beside.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _forget_old(directory: Path) -> None:
    """All but those that were used last."""
    files = []
    for path in directory.glob(f"*{_SUFFIX}"):
        with suppress(OSError):  # another service forgot it just now
            files.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(files, reverse=True)[MOST_FILES:]:
        with suppress(OSError):
            path.unlink()
