"""Waiting until no CPU runs a program that started before now.

Two ways, at once, and the first that is there counts:

A visit: a thread runs on every CPU in turn. Filters run with bottom halves disabled, from their first instruction to
their last (XDP in NAPI, generic XDP and clsact alike), and nobody else gets a CPU in between: where the thread has run,
no program is left that was running before. Mostly a millisecond. Not on PREEMPT_RT, where bottom halves can be
preempted, nor where some CPU is not for us.

The kernel's own: updating a map of maps makes it wait for just that (maybe_wait_bpf_programs in kernel/bpf/syscall.c,
since 4.19), on every kernel that we run on and with nothing to configure. Eight to 32 milliseconds.

Both can begin in threads of their own while the next change is planned.
"""

from __future__ import annotations

import ctypes
import os
import struct
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path

from firewall.kernel import bpf

_ARRAY, _ARRAY_OF_MAPS = 2, 12
_MOST_VISITED = 64  # CPUs: to visit more takes as long as the kernel's way
# os.sched_setaffinity would keep the interpreter's lock while it waits.
_LIBC = ctypes.CDLL(None, use_errno=True)
_REALTIME = Path("/sys/kernel/realtime")
_CPUS = Path("/sys/devices/system/cpu")


class GracePeriod:
    """Owns two tiny maps and two threads; close() gives them back."""

    def __init__(self) -> None:
        self._waiter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grace")
        self._visitor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grace-visits")
        self._can_visit = not is_realtime()
        self._begun: list[Future[None]] = []
        self._inner = self._create(_ARRAY, 0)
        self._outer = self._create(_ARRAY_OF_MAPS, self._inner)

    def _create(self, kind: int, inner: int) -> int:
        attr = struct.pack("=IIIIII", kind, 4, 4, 1, 0, inner)
        return bpf.call(bpf.MAP_CREATE, attr, "creating a map")[0]

    def wait(self) -> None:
        """For the programs that run now."""
        _first(self._started())

    def begin(self) -> None:
        """Of the programs that run now: finish() waits for them."""
        _cancel(self._begun)
        self._begun = self._started()

    @property
    def has_passed(self) -> bool:
        """Whether finish() would not wait."""
        return any(each.done() and each.exception() is None for each in self._begun)

    def finish(self) -> None:
        """For those of the last begin(), and where that failed or never was, those that run now."""
        begun, self._begun = self._begun, []
        _first(begun or self._started())

    def _started(self) -> list[Future[None]]:
        ways = [self._waiter.submit(self._wait)]
        if self._can_visit:
            ways.append(self._visitor.submit(self._visit))
        return ways

    def _wait(self) -> None:
        key = ctypes.c_uint32(0)
        value = ctypes.c_uint32(self._inner)
        attr = struct.pack("=IIQQQ", self._outer, 0, ctypes.addressof(key), ctypes.addressof(value), 0)
        bpf.call(bpf.MAP_UPDATE, attr, "waiting for running programs")

    def _visit(self) -> None:
        """Raises OSError where a CPU is not for us, or goes off line."""
        allowed = os.sched_getaffinity(os.getpid())
        if len(allowed) > _MOST_VISITED or not all(map(_is_off_line, listed_cpus("present") - allowed)):
            raise OSError(f"not all CPUs can be visited, or more than {_MOST_VISITED}")
        try:
            for cpu in allowed:
                _run_on({cpu})
        except PermissionError:
            self._can_visit = False
            raise
        finally:
            _run_on(allowed)

    def close(self) -> None:
        self._visitor.shutdown()
        self._waiter.shutdown()
        os.close(self._outer)
        os.close(self._inner)


def is_realtime() -> bool:
    """Whether the kernel is PREEMPT_RT."""
    return _REALTIME.exists() or "PREEMPT_RT" in os.uname().version


def listed_cpus(which: str) -> set[int]:
    """As sysfs lists them, "0-3,6". `which`: "possible", "present"; not "online", of which containers are told their
    own alone (lxcfs)."""
    ranges = [part.partition("-") for part in (_CPUS / which).read_text(encoding="ascii").strip().split(",")]
    return {cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)}


def _is_off_line(cpu: int) -> bool:
    return (_CPUS / f"cpu{cpu}/online").read_text(encoding="ascii").strip() == "0"


def _first(ways: list[Future[None]]) -> None:
    """Waits until one of them has succeeded; raises what the first said where none does."""
    left = set(ways)
    while left:
        done, left = wait_for(left, return_when=FIRST_COMPLETED)
        if any(each.exception() is None for each in done):
            _cancel(ways)
            return
    ways[0].result()


def _cancel(ways: list[Future[None]]) -> None:
    for each in ways:
        each.cancel()


def _run_on(cpus: set[int]) -> None:
    """The calling thread alone; when it returns, it runs on one of them."""
    mask = sum(1 << cpu for cpu in cpus)
    size = -(-mask.bit_length() // 64) * 8
    if _LIBC.sched_setaffinity(0, size, mask.to_bytes(size, "little")):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
