"""The filter's bits: of every prefix that was marked, whatever else was, and few of others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall.datapath import Key as DatapathKey
from firewall.kernel.keys import key_bytes, prefix_records
from firewall.presence import (
    ENTRIES_PER_WORD,
    MASK_MIN,
    marks,
    marks_of_one,
    mask_for,
    may_hold,
    set_marks,
)

MASKS = st.sampled_from((511, 1023, 262143))
BITS = {4: 32, 6: 128}
Key = tuple[int, int, int]


def keys(version: int) -> st.SearchStrategy[list[Key]]:
    bits = BITS[version]

    def masked(scope: int, length: int, address: int) -> Key:
        return scope, length, address >> (bits - length) << (bits - length)

    one = st.builds(masked, st.integers(0, 3), st.integers(0, bits), st.integers(0, (1 << bits) - 1))
    return st.lists(one, min_size=1, max_size=40)


def empty(mask: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.zeros((mask + 1) * 5 // 4, np.uint64)


@pytest.mark.parametrize("version", [4, 6])
@given(data=st.data(), mask=MASKS)
def test_what_was_marked_is_held(version: int, data: st.DataObject, mask: int) -> None:
    words, drawn = empty(mask), data.draw(keys(version))
    records = prefix_records(version, drawn)
    for some in (records[::2], records[1::2]):
        set_marks(words, marks(version, some, mask))
    assert may_hold(words, version, records, mask).all()


@pytest.mark.parametrize("version", [4, 6])
@given(data=st.data(), mask=MASKS)
def test_the_marks_of_a_prefix_depend_on_nothing_beside_it(
    version: int, data: st.DataObject, mask: int
) -> None:
    """Else an entry that is deleted and comes again, or is marked with others, would have other bits."""
    drawn = data.draw(keys(version))
    together, alone = empty(mask), empty(mask)
    set_marks(together, marks(version, prefix_records(version, drawn), mask))
    for each in drawn:
        set_marks(alone, marks(version, prefix_records(version, [each]), mask))
    assert (together == alone).all()


@pytest.mark.parametrize("version", [4, 6])
@given(data=st.data(), mask=MASKS)
def test_one_prefix_by_itself_has_the_same_key_and_marks(
    version: int, data: st.DataObject, mask: int
) -> None:
    for scope, length, address in data.draw(keys(version)):
        record = prefix_records(version, [(scope, length, address)])
        assert key_bytes(DatapathKey(version, scope, length, address)) == record.tobytes()
        wanted = marks(version, record, mask)
        found = marks_of_one(version, scope, length, address, mask)
        assert found == list(zip(wanted.places.tolist(), wanted.bits.tolist(), strict=True))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("structure", ["random", "consecutive", "spread", "nested"])
def test_few_of_other_prefixes_seem_to_be_held(version: int, structure: str) -> None:
    """Also where addresses have a structure: 1.6% of random ones are expected."""
    count, bits = 2048, BITS[version]
    random = np.random.default_rng(1)
    high = 0xC0000000 if version == 4 else 0x20010DB8 << 96
    step = {"random": 0, "consecutive": 1, "spread": 1 << (bits - 16), "nested": 1 << 8}[structure]
    numbers = random.integers(0, 1 << 31, 2 * count).tolist()
    addresses = [high ^ (number if not step else n * step) for n, number in enumerate(numbers)]
    length = {"spread": 16, "nested": bits - 8}.get(structure, bits)
    drawn = [
        (n & 3, length, address >> (bits - length) << (bits - length)) for n, address in enumerate(addresses)
    ]
    marked, others = prefix_records(version, drawn[:count]), prefix_records(version, drawn[count:])
    mask = mask_for(count)
    words = empty(mask)
    set_marks(words, marks(version, marked, mask))
    # Other addresses, and the same ones of another length or list.
    assert may_hold(words, version, others, mask).mean() < 0.05
    others = marked.copy()
    others["scope"] ^= 1
    assert may_hold(words, version, others, mask).mean() < 0.05
    others = marked.copy()
    others["length"] -= 1
    assert may_hold(words, version, others, mask).mean() < 0.05


@given(st.integers(0, 1 << 26))
def test_the_size_follows_the_entries(entries: int) -> None:
    mask = mask_for(entries)
    assert MASK_MIN <= mask < 1 << 18
    assert (mask + 1) & mask == 0
    assert mask == (1 << 18) - 1 or (mask + 1) * ENTRIES_PER_WORD >= entries
    assert mask == MASK_MIN or (mask + 1) // 2 * ENTRIES_PER_WORD < entries
