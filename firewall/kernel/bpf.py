"""The bpf(2) system call, as far as bcc has no use for us: maps and programs by file descriptor.

Owns the layouts of union bpf_attr (include/uapi/linux/bpf.h) and errno handling; every failure is a
KernelRefused that says what was tried. Knows no map of ours.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import resource
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall.errors import KernelRefused, kernel_refused

_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_BPF = _SYSCALL_NUMBERS.get(platform.machine(), 321)
_ATTR_SIZE = 128

(
    MAP_CREATE,
    MAP_LOOKUP,
    MAP_UPDATE,
    MAP_DELETE,
    MAP_NEXT_KEY,
    PROG_LOAD,
    OBJ_PIN,
    OBJ_GET,
    _,
    _,
    PROG_TEST_RUN,
) = range(11)
PROG_GET_FD_BY_ID, MAP_GET_FD_BY_ID, OBJ_GET_INFO = 13, 14, 15
BTF_LOAD, BTF_GET_FD_BY_ID = 18, 19
PROGRAM_CLASSIFIER, PROGRAM_XDP = 3, 6
_LICENCE = b"Dual MIT/GPL"
_LOG_SIZE = 1 << 20
# Only what the verifier refuses and its statistics: a log of all that it looked at may be hundreds of megabytes.
_LOG_STATS = 4
MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH = 24, 26, 27

_libc = ctypes.CDLL(None, use_errno=True)
# For calls that take a microsecond, by the thousand: where other threads wait for the interpreter, letting go of it
# for each would make each cost some milliseconds.
_quick = ctypes.PyDLL(None, use_errno=True).syscall
_quick.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long)
_quick.restype = ctypes.c_long


class _ElementAttr(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("fd", "key", "value", "flags"))


_ELEMENT = np.dtype([("fd", "<u8"), ("key", "<u8"), ("value", "<u8"), ("flags", "<u8")])
Records = npt.NDArray[np.void]
Layout = np.dtype[np.void]
_MAP_TYPE_HASH, _MAP_TYPE_ARRAY = 1, 2
_BPF_F_MMAPABLE, _BPF_F_INNER_MAP = 1 << 10, 1 << 12


def call(command: int, attr: bytes, action: str, allowed: tuple[int, ...] = ()) -> tuple[int, bytes]:
    """The result (negative errno where that is `allowed`) and the attr as the kernel left it."""
    buffer = ctypes.create_string_buffer(attr, _ATTR_SIZE)
    result = _libc.syscall(_BPF, command, buffer, _ATTR_SIZE)
    if result >= 0:
        return result, buffer.raw
    number = ctypes.get_errno()
    if number in allowed:
        return -number, buffer.raw
    raise kernel_refused(action, number)


class MapInfo(NamedTuple):
    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


class ProgramInfo(NamedTuple):
    id: int
    name: str
    map_ids: tuple[int, ...]


def allow_locked_memory() -> None:
    """Before Linux 5.11 maps count as locked memory, of which a process may have little. Later kernels do not ask,
    and without CAP_SYS_RESOURCE the limit stays as it is."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def get(path: Path) -> int:
    """A new descriptor of the pinned object. FileNotFoundError where nothing is pinned."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    result, _ = call(
        OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0), f"opening the pin {path}", (errno.ENOENT,)
    )
    if result == -errno.ENOENT:
        raise FileNotFoundError(errno.ENOENT, "nothing is pinned here", str(path))
    return result


def pin(fd: int, path: Path) -> None:
    name = ctypes.create_string_buffer(os.fsencode(path))
    call(OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0), f"pinning {path}")


def _info(fd: int, size: int) -> bytes:
    info = ctypes.create_string_buffer(size)
    call(OBJ_GET_INFO, struct.pack("=IIQ", fd, size, ctypes.addressof(info)), "reading an object's info")
    return info.raw


def map_info(fd: int) -> MapInfo:
    type_, id_, key, value, entries, flags, name = struct.unpack_from("=6I16s", _info(fd, 80))
    return MapInfo(type_, id_, key, value, entries, flags, name.rstrip(b"\0").decode())


def map_types(fd: int) -> tuple[int, int, int]:
    """Ids: of a map's type information (BTF), and within it of the types of key and value; 0 for none."""
    types = struct.unpack_from("=3I", _info(fd, 80), 64)
    return types[0], types[1], types[2]


def types_of(types_id: int) -> bytes:
    """Type information (BTF) that the kernel has, as it was given. Without CAP_SYS_ADMIN: that this process holds."""
    try:
        fd, _ = call(BTF_GET_FD_BY_ID, struct.pack("=I", types_id), f"opening type information {types_id}")
    except KernelRefused as refusal:
        held = _held("btf_id", types_id) if refusal.errno == errno.EPERM else None
        if held is None:
            raise
        fd = os.dup(held)
    try:
        (size,) = struct.unpack_from("=I", _info_with(fd, 0, None), 8)
        data = ctypes.create_string_buffer(size)
        _info_with(fd, size, data)
        return data.raw
    finally:
        os.close(fd)


def _held(kind: str, number: int) -> int | None:
    """The descriptor of this process that leads to a kernel object."""
    for each in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists them is closed by now
            if object_id(int(each), kind) == (kind, number):
                return int(each)
    return None


def _info_with(fd: int, size: int, data: ctypes.Array[ctypes.c_char] | None) -> bytes:
    """`struct bpf_btf_info`, the data where there is room for it."""
    at = 0 if data is None else ctypes.addressof(data)
    info = ctypes.create_string_buffer(struct.pack("=QII", at, size, 0), 16)
    call(OBJ_GET_INFO, struct.pack("=IIQ", fd, 16, ctypes.addressof(info)), "reading type information")
    return info.raw


def load_types(types: bytes) -> int:
    """A descriptor of type information (BTF), which maps can be made with."""
    data = ctypes.create_string_buffer(types, len(types))
    attr = struct.pack("=QQIII", ctypes.addressof(data), 0, len(types), 0, 0)
    return call(BTF_LOAD, attr, "loading type information")[0]


def create_map(
    name: str,
    type_: int,
    key_size: int,
    value_size: int,
    entries: int,
    flags: int = 0,
    inner: int = 0,
    types: tuple[int, int, int] = (0, 0, 0),
) -> int:
    """`inner`: a map of the kind that a map of maps holds; `types`: descriptor of type information, ids of the types of
    key and value in it."""
    attr = struct.pack(
        "=IIIIIII16sIIII", type_, key_size, value_size, entries, flags, inner, 0, name.encode()[:15], 0, *types,
    )  # fmt: skip
    return call(MAP_CREATE, attr, f"creating map {name} with room for {entries} entries")[0]


def load_program(kind: int, name: str, instructions: bytes) -> int:
    """Raises KernelRefused; what the verifier has against it, verifier_log() tells."""
    return _load_program(kind, name, instructions, 0, None)


def verifier_log(kind: int, name: str, instructions: bytes) -> str:
    """What the verifier says of a program."""
    log = ctypes.create_string_buffer(_LOG_SIZE)
    with suppress(KernelRefused):
        os.close(_load_program(kind, name, instructions, _LOG_STATS, log))
    return log.value.decode("utf-8", "replace")


def _load_program(
    kind: int, name: str, instructions: bytes, level: int, log: ctypes.Array[ctypes.c_char] | None
) -> int:
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(_LICENCE)
    attr = struct.pack(
        "=IIQQIIQII16sI", kind, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(licence),
        level, 0 if log is None else _LOG_SIZE, 0 if log is None else ctypes.addressof(log), 0, 0,
        name.encode()[:15], 0,
    )  # fmt: skip
    return call(PROG_LOAD, attr, f"loading program {name}")[0]


def program_info(fd: int) -> ProgramInfo:
    """`struct bpf_prog_info`; asked twice, the second time with room for the map ids."""
    _, id_ = struct.unpack_from("=II", _info(fd, 128))
    info = bytearray(128)
    ids = (ctypes.c_uint32 * 64)()
    struct.pack_into("=IQ", info, 52, 64, ctypes.addressof(ids))
    buffer = ctypes.create_string_buffer(bytes(info), 128)
    call(OBJ_GET_INFO, struct.pack("=IIQ", fd, 128, ctypes.addressof(buffer)), "reading a program's info")
    (count,) = struct.unpack_from("=I", buffer.raw, 52)
    name = buffer.raw[64:80].rstrip(b"\0").decode()
    return ProgramInfo(id_, name, tuple(ids[: min(count, 64)]))


def program_by_id(program_id: int) -> int | None:
    """A descriptor of a loaded program, None when it is gone."""
    result, _ = call(
        PROG_GET_FD_BY_ID,
        struct.pack("=III", program_id, 0, 0),
        f"opening program {program_id}",
        (errno.ENOENT,),
    )
    return None if result < 0 else result


def object_id(fd: int, *kinds: str) -> tuple[str, int]:
    """Kind and id of a map or program, or what else is asked for: each kind counts from 1. (A pin may lead to
    anything.)"""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in (kinds or ("map_id", "prog_id")):
            return name, int(value)
    return "", 0


class Map:
    """A map by descriptor; keys and values are numpy arrays of one row per element."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.info = map_info(fd)

    @classmethod
    def hash(cls, name: str, key: Layout, value: Layout, entries: int) -> Map:
        """A new hash map, all its memory taken at once."""
        return cls(create_map(name, _MAP_TYPE_HASH, key.itemsize, value.itemsize, entries))

    @classmethod
    def inner_array(cls, name: str, value: Layout, entries: int) -> Map:
        """A new array to be mapped, of a size that others of its map of maps need not have."""
        flags = _BPF_F_MMAPABLE | _BPF_F_INNER_MAP
        return cls(create_map(name, _MAP_TYPE_ARRAY, 4, value.itemsize, entries, flags))

    @classmethod
    def by_id(cls, map_id: int) -> Map:
        return cls(call(MAP_GET_FD_BY_ID, struct.pack("=III", map_id, 0, 0), f"opening map {map_id}")[0])

    @classmethod
    def pinned(cls, path: Path) -> Map:
        return cls(get(path))

    def close(self) -> None:
        os.close(self.fd)

    def _element(self, command: int, key: bytes, value: int, action: str, missing_ok: bool) -> bool:
        holder = ctypes.create_string_buffer(key, len(key))
        attr = _ElementAttr(self.fd, ctypes.addressof(holder), value, 0)
        if _quick(_BPF, command, ctypes.addressof(attr), ctypes.sizeof(attr)) >= 0:
            return True
        number = ctypes.get_errno()
        if missing_ok and number == errno.ENOENT:
            return False
        raise kernel_refused(f"{action} map {self.info.name}", number)

    def update(self, key: bytes, value: bytes) -> None:
        holder = ctypes.create_string_buffer(value, len(value))
        self._element(MAP_UPDATE, key, ctypes.addressof(holder), "writing", False)

    def point_at(self, slot: int, inner: Map) -> None:
        """Of a map of maps. The kernel waits until no program is in the map that was there."""
        key = ctypes.create_string_buffer(slot.to_bytes(4, "little"), 4)
        fd = ctypes.create_string_buffer(inner.fd.to_bytes(4, "little"), 4)
        attr = struct.pack("=QQQQ", self.fd, ctypes.addressof(key), ctypes.addressof(fd), 0)
        call(MAP_UPDATE, attr, f"writing map {self.info.name}")

    def lookup(self, key: bytes, size: int | None = None) -> bytes | None:
        """`size`: of the value as the system call copies it, for per-CPU maps."""
        size = size or self.info.value_size
        holder = ctypes.create_string_buffer(size)
        found = self._element(MAP_LOOKUP, key, ctypes.addressof(holder), "reading", True)
        return holder.raw if found else None

    def lookup_many(
        self, keys: Records, value: Layout, copies: int = 1
    ) -> tuple[npt.NDArray[np.bool_], Records]:
        """Which of the keys are there, and a row of values for each; `copies`: of a value, for per-CPU maps."""
        keys = np.ascontiguousarray(keys)
        values = np.zeros((len(keys), copies), value)
        found = np.zeros(len(keys), np.bool_)
        calls = np.zeros(len(keys), _ELEMENT)
        rows = np.arange(len(keys), dtype=np.uint64)
        calls["fd"] = self.fd
        calls["key"] = keys.ctypes.data + rows * np.uint64(keys.itemsize)
        calls["value"] = values.ctypes.data + rows * np.uint64(value.itemsize * copies)
        size, start = _ELEMENT.itemsize, calls.ctypes.data
        for row, at in enumerate(range(start, start + size * len(keys), size)):
            if _quick(_BPF, MAP_LOOKUP, at, size) >= 0:
                found[row] = True
            elif (number := ctypes.get_errno()) != errno.ENOENT:
                raise kernel_refused(f"reading map {self.info.name}", number)
        return found, values

    def delete(self, key: bytes) -> bool:
        return self._element(MAP_DELETE, key, 0, "deleting from", True)

    def keys(self) -> Iterator[bytes]:
        """One by one: for small maps that nobody deletes from meanwhile."""
        previous: bytes | None = None
        following = ctypes.create_string_buffer(self.info.key_size)
        while True:
            holder = ctypes.create_string_buffer(previous, len(previous)) if previous is not None else None
            at = ctypes.addressof(holder) if holder is not None else 0
            attr = struct.pack("=IIQQ", self.fd, 0, at, ctypes.addressof(following))
            if call(MAP_NEXT_KEY, attr, f"reading map {self.info.name}", (errno.ENOENT,))[0] < 0:
                return
            previous = following.raw
            yield previous

    def update_batch(self, keys: Records, values: Records) -> None:
        if len(keys):
            self._batch(MAP_UPDATE_BATCH, np.ascontiguousarray(keys), np.ascontiguousarray(values), "writing")

    def delete_batch(self, keys: Records) -> None:
        """Keys that are not there are passed over."""
        keys = np.ascontiguousarray(keys)
        done = 0
        while done < len(keys):
            result, count = self._batch(MAP_DELETE_BATCH, keys[done:], None, "deleting from", (errno.ENOENT,))
            done += count + (result < 0)

    def _batch(
        self,
        command: int,
        keys: Records,
        values: Records | None,
        action: str,
        allowed: tuple[int, ...] = (),
    ) -> tuple[int, int]:
        at = values.ctypes.data if values is not None else 0
        attr = struct.pack("=QQQQIIQQ", 0, 0, keys.ctypes.data, at, len(keys), self.fd, 0, 0)
        result, after = call(command, attr, f"{action} map {self.info.name}", allowed)
        return result, int(struct.unpack_from("=I", after, 32)[0])

    def dump(self, key: Layout, value: Layout, chunk: int = 65536) -> Iterator[tuple[Records, Records]]:
        """All elements in batches, as arrays of the given dtypes."""
        position = np.zeros(8, np.uint8)
        keys, values = np.zeros(chunk, key), np.zeros(chunk, value)
        at_in = 0
        while True:
            attr = struct.pack(
                "=QQQQIIQQ",
                at_in,
                position.ctypes.data,
                keys.ctypes.data,
                values.ctypes.data,
                chunk,
                self.fd,
                0,
                0,
            )
            result, after = call(
                MAP_LOOKUP_BATCH, attr, f"reading map {self.info.name}", (errno.ENOENT, errno.ENOSPC)
            )
            if result == -errno.ENOSPC:
                chunk *= 2
                keys, values = np.zeros(chunk, key), np.zeros(chunk, value)
                continue
            (count,) = struct.unpack_from("=I", after, 32)
            if count:
                yield keys[:count].copy(), values[:count].copy()
            if result < 0:
                return
            at_in = position.ctypes.data

    def mapped(self, dtype: Layout) -> Records:
        """The elements of a BPF_F_MMAPABLE array, shared with the kernel: what is written is there at once."""
        stride = -(-self.info.value_size // 8) * 8
        shared = mmap.mmap(self.fd, -(-stride * self.info.max_entries // mmap.PAGESIZE) * mmap.PAGESIZE)
        if stride != dtype.itemsize:
            raise ValueError(f"{self.info.name}: elements of {dtype.itemsize} bytes stand {stride} apart")
        return np.frombuffer(shared, dtype, count=self.info.max_entries)

    def mapped_part(self, dtype: Layout, first: int, end: int) -> Records:
        """The same of a part of it, for as long as somebody has what this answers. `dtype`: of parts of an element that
        follow one another without a gap; `first`, `end` count these."""
        begin = first * dtype.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
        shared = mmap.mmap(self.fd, end * dtype.itemsize - begin, offset=begin)
        return np.frombuffer(shared, dtype, count=end - first, offset=first * dtype.itemsize - begin)


def try_offload(ifindex: int, device: str) -> None:
    """Loads `return XDP_PASS` for a device's hardware and drops it. Raises KernelRefused where it takes none."""
    instructions = ctypes.create_string_buffer(
        struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    )
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII16sI", PROGRAM_XDP, 2, ctypes.addressof(instructions), ctypes.addressof(licence),
        0, 0, 0, 0, 0, b"fw_probe", ifindex,
    )  # fmt: skip
    try:
        fd, _ = call(PROG_LOAD, attr, f"loading a program into the hardware of {device}")
    except KernelRefused as error:
        error.hint = 'its driver takes no programs into the hardware; use mode "auto", "native" or "generic"'
        error.code = "offload_unavailable"
        raise
    os.close(fd)


def test_run(fd: int, frame: bytes, repeat: int = 1, context: bytes = b"") -> tuple[int, int, bytes]:
    """Runs a program on a frame (BPF_PROG_TEST_RUN): its verdict, ns a run, the frame afterwards."""
    data = ctypes.create_string_buffer(frame, len(frame))
    out = ctypes.create_string_buffer(len(frame) + 256)
    holder = ctypes.create_string_buffer(context, len(context)) if context else None
    at = ctypes.addressof(holder) if holder is not None else 0
    attr = struct.pack(
        "=IIIIQQIIIIQQ", fd, 0, len(frame), len(out), ctypes.addressof(data), ctypes.addressof(out),
        repeat, 0, len(context), 0, at, 0,
    )  # fmt: skip
    _, after = call(PROG_TEST_RUN, attr, "running a program on a test packet")
    verdict, _, size = struct.unpack_from("=III", after, 4)
    (duration_ns,) = struct.unpack_from("=I", after, 36)
    return verdict, duration_ns, out.raw[:size]
