"""A program that runs over and over while a test does something else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from firewall.kernel import bpf
from tests.netns.topology import wait_until


@contextmanager
def running(
    program: int, frame: bytes, repeat: int, rounds: int = 0, cpu: int | None = None
) -> Iterator[None]:
    """Meanwhile a thread (on that CPU) runs the program on the frame: `rounds` times `repeat` runs, or more."""
    is_over = threading.Event()
    done = 0

    def run() -> None:
        nonlocal done
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        while not is_over.is_set():
            bpf.test_run(program, frame, repeat=repeat)
            done += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
        wait_until(lambda: done >= rounds, f"{rounds} rounds of packets")
    finally:
        is_over.set()
        thread.join()
