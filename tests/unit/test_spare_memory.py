"""What a large change needed is given back to the system."""

from __future__ import annotations

import subprocess
import sys

from firewall.spare_memory import SpareMemory

# In a process of its own: the heap of the tests' process has free room already. The pieces are small, so that the C
# library takes them from its heap; the last one keeps the heap from shrinking at its end by itself.
SCRIPT = """
from firewall.spare_memory import SpareMemory, resident
spare, before = SpareMemory(), resident()
pieces = [b"x" * 100_000 for _ in range(2000)]
last = b"y" * 100_000
grown = resident()
del pieces
kept = resident()
looked = spare.look()
print(before, grown, kept, resident(), looked)
"""
MEGABYTE = 1 << 20


def test_the_heap_that_is_free_is_given_back() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    *sizes, looked = told.split()
    before, grown, kept, after = (int(size) // MEGABYTE for size in sizes)
    assert looked == "True"
    assert grown > before + 150 and kept > before + 150
    assert after < before + 20


HOLES = """
import sys
from firewall.spare_memory import keep_nothing_large, resident
if sys.argv[1] == "nothing":
    keep_nothing_large()
first = b"x" * 24_000_000
del first
before = resident()
pieces = []
for _ in range(10):
    pieces += [b"x" * 8_000_000, b"y" * 100_000]
del pieces[::2]
print((resident() - before) >> 20)
"""


def test_what_is_large_leaves_no_holes() -> None:
    kept = {
        what: int(subprocess.run([sys.executable, "-c", HOLES, what], capture_output=True, check=True).stdout)
        for what in ("nothing", "holes")
    }
    assert kept["nothing"] < 10 and kept["holes"] > 60, kept


def test_a_process_that_did_not_grow_is_left_alone() -> None:
    spare = SpareMemory()
    assert spare.look() is False
