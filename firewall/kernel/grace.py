"""Waiting until no CPU runs a program that started before now.

Updating a map of maps makes the kernel wait for just that (maybe_wait_bpf_programs in kernel/bpf/syscall.c,
since 4.19), on every kernel that we run on and with nothing to configure. It takes some milliseconds, so it can begin
in a thread of its own while the next change is planned.
"""

from __future__ import annotations

import ctypes
import os
import struct
from concurrent.futures import Future, ThreadPoolExecutor

from firewall.kernel import bpf

_ARRAY, _ARRAY_OF_MAPS = 2, 12


class GracePeriod:
    """Owns two tiny maps and a thread; close() gives them back."""

    def __init__(self) -> None:
        self._waiter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grace")
        self._begun: Future[None] | None = None
        self._inner = self._create(_ARRAY, 0)
        self._outer = self._create(_ARRAY_OF_MAPS, self._inner)

    def _create(self, kind: int, inner: int) -> int:
        attr = struct.pack("=IIIIII", kind, 4, 4, 1, 0, inner)
        return bpf.call(bpf.MAP_CREATE, attr, "creating a map")[0]

    def wait(self) -> None:
        """For the programs that run now."""
        self._wait()

    def begin(self) -> None:
        """Of the programs that run now: finish() waits for them."""
        self._begun = self._waiter.submit(self._wait)

    @property
    def has_passed(self) -> bool:
        """Whether finish() would not wait."""
        return self._begun is not None and self._begun.done()

    def finish(self) -> None:
        """For those of the last begin(), and where that failed or never was, those that run now."""
        begun, self._begun = self._begun, None
        if begun is None:
            self._wait()
        else:
            begun.result()

    def _wait(self) -> None:
        key = ctypes.c_uint32(0)
        value = ctypes.c_uint32(self._inner)
        attr = struct.pack("=IIQQQ", self._outer, 0, ctypes.addressof(key), ctypes.addressof(value), 0)
        bpf.call(bpf.MAP_UPDATE, attr, "waiting for running programs")

    def close(self) -> None:
        self._waiter.shutdown()
        os.close(self._outer)
        os.close(self._inner)
