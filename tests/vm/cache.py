"""What takes long to build is built once and kept: below $EBPF_FW_VM_CACHE, else ~/.cache/ebpf-fw-vm.

Owns the directory's layout (one directory an artifact, named for what it was made from). It must not know
what the artifacts are. An artifact is whole or absent: it is built beside and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def directory() -> Path:
    path = Path(os.environ.get("EBPF_FW_VM_CACHE") or Path.home() / ".cache" / "ebpf-fw-vm")
    path.mkdir(parents=True, exist_ok=True)
    return path


def artifact(name: str, made_from: object, build: Callable[[Path], None]) -> Path:
    """The directory that `build` filled. `made_from`: whatever decides its content, by its repr.

    An artifact of the same name that was made from something else is removed.
    """
    digest = hashlib.sha256(repr(made_from).encode()).hexdigest()[:12]
    wanted = directory() / f"{name}-{digest}"
    with _lock(name):
        if wanted.exists():
            return wanted
        for old in directory().glob(f"{name}-" + "[0-9a-f]" * 12 + "*"):
            shutil.rmtree(old)
        building = wanted.with_name(f"{wanted.name}.building")
        building.mkdir()
        build(building)
        building.rename(wanted)
    return wanted


@contextmanager
def _lock(name: str) -> Iterator[None]:
    with open(directory() / f".{name}.lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
