"""What a large change needed is given back to the system."""

from __future__ import annotations

from firewall.spare_memory import SpareMemory, resident

SMALL = 100_000  # bytes: the C library takes such pieces from its heap, not from the system one by one


def test_the_heap_that_is_free_is_given_back() -> None:
    spare = SpareMemory()
    before = resident()
    pieces = [b"x" * SMALL for _ in range(2000)]
    last = b"y" * SMALL  # it keeps the heap from shrinking at its end by itself
    grown = resident()
    assert grown > before + 150 * 1_000_000
    del pieces
    spare.look()
    assert resident() < before + 50 * 1_000_000
    assert last


def test_a_process_that_did_not_grow_is_left_alone() -> None:
    spare = SpareMemory()
    assert spare.look() is False
