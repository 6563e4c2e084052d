"""Waiting until no CPU runs a program that started before now.

Updating a map of maps makes the kernel wait for just that (maybe_wait_bpf_programs in kernel/bpf/syscall.c,
since 4.19), on every kernel that we run on and with nothing to configure.
"""

from __future__ import annotations

import ctypes
import os
import struct

from firewall.kernel import bpf

_ARRAY, _ARRAY_OF_MAPS = 2, 12


class GracePeriod:
    """Owns two tiny maps; close() gives them back."""

    def __init__(self) -> None:
        self._inner = self._create(_ARRAY, 0)
        self._outer = self._create(_ARRAY_OF_MAPS, self._inner)

    def _create(self, kind: int, inner: int) -> int:
        attr = struct.pack("=IIIIII", kind, 4, 4, 1, 0, inner)
        return bpf.call(bpf.MAP_CREATE, attr, "creating a map")[0]

    def wait(self) -> None:
        """Some milliseconds."""
        key = ctypes.c_uint32(0)
        value = ctypes.c_uint32(self._inner)
        attr = struct.pack("=IIQQQ", self._outer, 0, ctypes.addressof(key), ctypes.addressof(value), 0)
        bpf.call(bpf.MAP_UPDATE, attr, "waiting for running programs")

    def close(self) -> None:
        os.close(self._outer)
        os.close(self._inner)
