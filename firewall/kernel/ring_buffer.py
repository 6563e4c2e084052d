"""A BPF ring buffer (BPF_MAP_TYPE_RINGBUF, Linux 5.8) read through its mapped pages.

Owns the two positions, the format of records and waiting for one. What a record holds is the caller's business.
There is one reader: nothing here is thread-safe but wake().

    consumer page (ours to write) | producer page | data | data once more, so that no record is ever cut in two
"""

from __future__ import annotations

import mmap
import os
import select
import struct

import numpy as np

# include/uapi/linux/bpf.h and kernel/bpf/ringbuf.c: the header of a record is its length with two flags, and 4 bytes
# that only the kernel needs.
BUSY, DISCARDED = 1 << 31, 1 << 30
HEADER_SIZE = 8
_LENGTH = struct.Struct("=I")


def records(data: memoryview | bytes, size: int, at: int, end: int, most: int) -> tuple[list[bytes], int]:
    """Up to `most` records between two positions, and the position after them. `data`: the `size` bytes of the ring,
    twice. Ends before a record that is being written; passes over those that their writer gave up."""
    found: list[bytes] = []
    while at < end and len(found) < most:
        start = at & (size - 1)
        (header,) = _LENGTH.unpack_from(data, start)
        if header & BUSY:
            break
        length = header & ~DISCARDED
        if not header & DISCARDED:
            body = start + HEADER_SIZE
            found.append(bytes(data[body : body + length]))
        at += -(-(HEADER_SIZE + length) // 8) * 8
    return found, at


class RingBuffer:
    """Maps the ring behind a descriptor, which it does not keep. `size`: of its data, a power of two."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = os.dup(fd)
        self._size = size
        page = mmap.PAGESIZE
        self._ours = mmap.mmap(self._fd, page)
        self._theirs = mmap.mmap(self._fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        # Of whole words, so that a position is read and written with one instruction.
        self._consumer = np.frombuffer(self._ours, "<u8", 1)
        self._producer = np.frombuffer(self._theirs, "<u8", 1)
        self._data = memoryview(self._theirs)[page:]
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(self._fd, select.EPOLLIN)
        self._poll.register(self._wake, select.EPOLLIN)

    def wait(self, timeout_s: float) -> None:
        """Until there is a record, wake() was called or the time is over."""
        for fd, _ in self._poll.poll(timeout_s):
            if fd == self._wake:
                os.eventfd_read(self._wake)

    def wake(self) -> None:
        os.eventfd_write(self._wake, 1)

    def read(self, most: int) -> list[bytes]:
        """Records that are there, the oldest first; their room is free again."""
        found, at = records(self._data, self._size, int(self._consumer[0]), int(self._producer[0]), most)
        self._consumer[0] = at
        return found

    def close(self) -> None:
        """The pages are unmapped when the last view of them goes."""
        self._poll.close()
        os.close(self._wake)
        os.close(self._fd)
