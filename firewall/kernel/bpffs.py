"""The bpf file system: mounted where the pins are to live.

Owns finding and mounting it. Pins are what keeps filters judging while the service is away.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

from firewall.errors import Conflict, kernel_refused

_BPF_FS_MAGIC = 0xCAFE4A11
_libc = ctypes.CDLL(None, use_errno=True)


def is_bpffs(path: Path) -> bool:
    """Whether an existing path lies on a bpf file system (statfs(2), f_type is the first word)."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer):
        raise kernel_refused(f"statfs {path}", ctypes.get_errno())
    (kind,) = struct.unpack_from("@l", buffer.raw)
    return int(kind) & 0xFFFFFFFF == _BPF_FS_MAGIC


def ensure(pin_root: Path) -> None:
    """Makes pin_root a directory on a bpf file system; mounts one on /sys/fs/bpf (or pin_root's first
    existing parent that is an empty directory) where there is none."""
    existing = next(path for path in (pin_root, *pin_root.parents) if path.exists())
    if not is_bpffs(existing):
        _mount(_mount_point(pin_root, existing))
    pin_root.mkdir(parents=True, exist_ok=True, mode=0o700)


class PinLock:
    """Keeps other services off a directory of pins until it is closed. Raises Conflict."""

    def __init__(self, pin_root: Path) -> None:
        self._descriptor = os.open(pin_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise Conflict(
                f"another ebpf-fw uses the pins in {pin_root}",
                "stop it first (`systemctl stop ebpf-fw`), or give this one a bpf.pin_root of its own",
                code="already_running",
            ) from None

    def is_of(self, pin_root: Path) -> bool:
        """False where the directory was removed and made again, or another file system is mounted there."""
        mine, there = os.fstat(self._descriptor), pin_root.stat()
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = close


def _mount_point(pin_root: Path, existing: Path) -> Path:
    usual = Path("/sys/fs/bpf")
    if pin_root.is_relative_to(usual) and pin_root != usual:
        return usual
    if any(existing.iterdir()) and existing == pin_root:
        raise Conflict(f"{existing} is not on a bpf file system and not empty", "choose another bpf.pin_root")
    if existing != pin_root:
        parent = pin_root.parent
        parent.mkdir(parents=True, exist_ok=True)
        return parent if not any(parent.iterdir()) else _made(pin_root)
    return existing


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _mount(target: Path) -> None:
    if _libc.mount(b"bpf", os.fsencode(target), b"bpf", 0, b"mode=0700"):
        raise kernel_refused(f"mounting a bpf file system on {target}", ctypes.get_errno())
