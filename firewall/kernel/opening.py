"""Opening a loaded program by its id, with or without CAP_SYS_ADMIN.

Linux opens programs by their ids for CAP_SYS_ADMIN alone, which the unit does not give. Without it a program is
looked for among the descriptors that this process holds and among the pins: ours are in both. One that is
nowhere cannot be opened, nor its name be read. Owns that search; it must not say whose a program is.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from firewall.errors import FirewallError, KernelRefused
from firewall.kernel import bpf

BPF_FS = Path("/sys/fs/bpf")
HINT = (
    "without CAP_SYS_ADMIN, which the unit does not give, a program can be opened only where it is pinned; "
    "`bpftool net` shows what is attached, and its owner's own tool detaches it"
)


def open_program(program_id: int, held: Iterable[int] = (), places: Iterable[Path] = ()) -> int | None:
    """A descriptor of its own, None when the program is gone. `held`: descriptors of programs; `places`: directories
    of pins to look at before all of /sys/fs/bpf. Raises KernelRefused where it can be opened in no way."""
    try:
        return bpf.program_by_id(program_id)
    except KernelRefused as refusal:
        if refusal.errno != errno.EPERM:
            raise
        wanted = ("prog_id", program_id)
        for fd in held:
            if bpf.object_id(fd) == wanted:
                return os.dup(fd)
        for fd, _ in pinned(*places, BPF_FS):
            if bpf.object_id(fd) == wanted:
                return os.dup(fd)
        refusal.hint = HINT
        raise


def pinned(*places: Path) -> Iterator[tuple[int, Path]]:
    """Every object that is pinned below directories, and its path. The descriptor is closed at the next step."""
    for place in places:
        for directory, _, names in os.walk(place):
            for name in names:
                path = Path(directory, name)
                with suppress(OSError, FirewallError):
                    fd = bpf.get(path)
                    try:
                        yield fd, path
                    finally:
                        os.close(fd)
