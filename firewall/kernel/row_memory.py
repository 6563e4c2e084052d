"""The memory of an array of rows, all of it at one address, of which pages are mapped when they are asked for.

What is mapped counts as memory of this process, and mapping all of a large array for one row takes milliseconds. So
addresses for all of it are set aside, and pages come there: one for one row, all for many. Some stay until they are
many: taking a page away costs more than having it, since the other CPUs must be told. Where single rows come by the
hundred, all of it is mapped until there is a rest.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import numpy.typing as npt

from firewall.errors import kernel_refused
from firewall.kernel.bpf import Map, Records
from firewall.layout import FRONT_ROW

_A_PAGE = mmap.PAGESIZE // FRONT_ROW.itemsize  # rows
_MOST_ALONE = 256  # pages, beyond which all are mapped by one call
_MOST_SORTED = 4096  # rows, beyond which nobody counts the pages
_MAP_FIXED = 0x10
_NOWHERE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_ALL, _NOTHING = mmap.PROT_READ | mmap.PROT_WRITE, 0
_FAILED = ctypes.c_void_p(-1).value

# These keep the interpreter's lock: a call takes a microsecond, and to get the lock again some milliseconds.
_libc = ctypes.PyDLL(None, use_errno=True)
_mmap, _munmap = _libc.mmap, _libc.munmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class RowMemory:
    """`rows`: all of them. Only those may be touched that were asked for after the last let_go(): others are
    not mapped, and whoever touches them ends the process."""

    def __init__(self, rows: Records) -> None:
        """Rows that are mapped for good."""
        self.rows = rows

    def need_all(self) -> None: ...

    def need_at(self, places: npt.NDArray[np.int64]) -> None:
        """With each row its page: the bucket that it is in."""

    def need_one(self, place: int) -> None:
        """The same for one."""

    def part(self, first: int, end: int) -> AbstractContextManager[None]:
        """Within it, rows that follow one another."""
        return nullcontext()

    def let_go(self) -> None:
        """Of what was mapped for many, where that is much."""

    def rest(self) -> None:
        """The same, of what single rows had mapped too."""


class MappedRows(RowMemory):
    """Of a BPF_F_MMAPABLE array, which must stay open."""

    def __init__(self, table: Map, count: int) -> None:
        self._table = table
        self._pages = -(-count // _A_PAGE)
        self._size = self._pages * mmap.PAGESIZE
        self._begin = _mapped(None, self._size, _NOTHING, _NOWHERE, -1, 0)
        memory = (ctypes.c_char * self._size).from_address(self._begin)
        # Once nobody has a view of it any more. At the end of the process other threads may still have one.
        weakref.finalize(memory, _munmap, self._begin, self._size).atexit = False
        self._is_mapped = np.zeros(self._pages, np.bool_)
        self._count = 0  # pages that are mapped
        self._is_busy = False
        super().__init__(np.frombuffer(memoryview(memory), FRONT_ROW, count))

    def need_all(self) -> None:
        self._map(0, self._pages)

    def need_at(self, places: npt.NDArray[np.int64]) -> None:
        if len(places) > _MOST_SORTED:
            self.need_all()
            return
        pages = np.unique(places // _A_PAGE)
        missing = pages[~self._is_mapped[pages]].tolist()
        if len(missing) > _MOST_ALONE:
            self.need_all()
            return
        for page in missing:
            self._map(page, page + 1)

    def need_one(self, place: int) -> None:
        page = place // _A_PAGE
        if self._is_mapped[page]:
            return
        if self._count < _MOST_ALONE:
            self._map(page, page + 1)
        else:
            self.need_all()
            self._is_busy = True

    @contextmanager
    def part(self, first: int, end: int) -> Iterator[None]:
        pages = first // _A_PAGE, -(-end // _A_PAGE)
        is_mine = self._map(*pages)
        try:
            yield
        finally:
            if is_mine:
                self._unmap(*pages)

    def let_go(self) -> None:
        if self._count > _MOST_ALONE and not self._is_busy:
            self._unmap(0, self._pages)

    def rest(self) -> None:
        self._is_busy = False
        self.let_go()

    def _map(self, first: int, end: int) -> bool:
        """Whether they were not mapped already."""
        if self._is_mapped[first:end].all():
            return False
        at, size = first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE
        _mapped(self._begin + at, size, _ALL, mmap.MAP_SHARED | _MAP_FIXED, self._table.fd, at)
        self._note(first, end, True)
        return True

    def _unmap(self, first: int, end: int) -> None:
        at, size = first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE
        _mapped(self._begin + at, size, _NOTHING, _NOWHERE | _MAP_FIXED, -1, 0)
        self._note(first, end, False)

    def _note(self, first: int, end: int, is_mapped: bool) -> None:
        before = int(np.count_nonzero(self._is_mapped[first:end]))
        self._is_mapped[first:end] = is_mapped
        self._count += (end - first if is_mapped else 0) - before


def _mapped(address: int | None, size: int, access: int, kind: int, fd: int, at: int) -> int:
    """Where it is. Raises KernelRefused."""
    found = _mmap(address, size, access, kind, fd, at)
    if found == _FAILED:
        raise kernel_refused("mapping rows of addresses", ctypes.get_errno())
    return int(found)
