"""Owns the raw bpf(2) questions of the host probe: what is loaded, what is pinned, does the syscall work.

It must not attach, pin or keep anything: what it creates to try the syscall is closed before it returns.
It does not use bcc, because the probe has to give an answer where bcc is missing.
"""

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SYSCALL_NUMBERS = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "s390x": 351,
    "armv7l": 386,
    "i686": 357,
}

# enum bpf_cmd, bpf_map_type, bpf_prog_type and bpf_attach_type of include/uapi/linux/bpf.h
_MAP_CREATE, _PROG_LOAD, _OBJ_GET = 0, 5, 7
_PROG_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _PROG_QUERY = 13, 15, 16
_MAP_TYPE_ARRAY, _PROG_TYPE_XDP = 2, 6
_ATTACH_TCX_EGRESS = 47

_ATTRIBUTE_SIZE = 128  # the kernel takes a longer union bpf_attr than it knows when the rest is zero
_XDP_PASS_AND_EXIT = struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)
_INFO_SIZE = 80  # struct bpf_prog_info up to and with `name`
_QUERY_LIMIT = 64


@dataclass(frozen=True)
class LoadedProgram:
    id: int
    name: str | None


def load_xdp_and_map() -> int:
    """Create a one-element map, load a two-instruction XDP program, close both; the bytes of its JIT code.

    0 means that the kernel interprets the program, or does not tell us. OSError where the kernel refuses.
    """
    with _open_fd(_MAP_CREATE, struct.pack("=IIII", _MAP_TYPE_ARRAY, 4, 4, 1)):
        pass
    code = ctypes.create_string_buffer(_XDP_PASS_AND_EXIT, len(_XDP_PASS_AND_EXIT))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("=IIQQ", _PROG_TYPE_XDP, 2, ctypes.addressof(code), ctypes.addressof(licence))
    with _open_fd(_PROG_LOAD, attributes) as program:
        (jited_length,) = struct.unpack_from("=I", _program_info(program), 16)
        return int(jited_length)


def program(program_id: int) -> LoadedProgram:
    """The loaded program of that id; its name is None where we may not look or it is gone."""
    try:
        with _open_fd(_PROG_GET_FD_BY_ID, struct.pack("=I", program_id)) as fd:
            name = _program_info(fd)[64:80].split(b"\0")[0].decode("ascii", "replace")
    except OSError:
        return LoadedProgram(program_id, None)
    return LoadedProgram(program_id, name or None)


def pinned_program_ids(pin_root: Path) -> frozenset[int]:
    """Ids of the programs pinned below `pin_root`; empty where it does not exist or may not be read."""
    ids: set[int] = set()
    for directory, _, names in os.walk(pin_root):
        for name in names:
            path = ctypes.create_string_buffer(os.fsencode(os.path.join(directory, name)))
            attributes = struct.pack("=Q", ctypes.addressof(path))
            with contextlib.suppress(OSError), _open_fd(_OBJ_GET, attributes) as fd:
                ids.update(_program_id_of(fd))
    return frozenset(ids)


def tcx_egress_program_ids(ifindex: int) -> tuple[int, ...]:
    """Programs on the interface's tcx egress (kernel 6.6), which run before every clsact filter."""
    ids = (ctypes.c_uint32 * _QUERY_LIMIT)()
    query = struct.pack("=IIIIQI", ifindex, _ATTACH_TCX_EGRESS, 0, 0, ctypes.addressof(ids), _QUERY_LIMIT)
    try:
        _, answer = _bpf(_PROG_QUERY, query)
    except OSError:
        return ()
    (count,) = struct.unpack_from("=I", answer, 24)
    return tuple(ids[:count])


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """The system call's result and the union bpf_attr as the kernel left it."""
    number = _SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(f"the number of the bpf system call on {platform.machine()} is not known here")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    union = ctypes.create_string_buffer(attributes, _ATTRIBUTE_SIZE)
    size = ctypes.c_long(_ATTRIBUTE_SIZE)
    result = libc.syscall(ctypes.c_long(number), ctypes.c_long(command), union, size)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result), union.raw


@contextlib.contextmanager
def _open_fd(command: int, attributes: bytes) -> Iterator[int]:
    fd, _ = _bpf(command, attributes)
    try:
        yield fd
    finally:
        os.close(fd)


def _program_info(fd: int) -> bytes:
    info = ctypes.create_string_buffer(_INFO_SIZE)
    _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, _INFO_SIZE, ctypes.addressof(info)))
    return info.raw


def _program_id_of(fd: int) -> Iterator[int]:
    # A pinned map opens just as well; only a program has this line.
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("prog_id:"):
            yield int(line.split()[1])
