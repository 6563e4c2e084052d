"""The index of entries by the million against a dictionary, whatever was merged when."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall.address_index import (
    AddressIndex,
    decoded,
    encode,
    encode_many,
    key_columns,
    key_fields,
    no_entries,
    sorted_entries,
)
from firewall.datapath import Entries, Entry, Key

BITS = {4: 32, 6: 128}
VERSIONS = st.sampled_from((4, 6))


def random_key(rng: random.Random, version: int) -> Key:
    """Of few keys, so that they meet again; zero bytes at the end of an address among them."""
    bits, length = BITS[version], rng.choice((0, 8, 31, 32, BITS[version]))
    address = rng.choice((0, 1, 255, 256, 10 << (bits - 8), (1 << bits) - 1))
    return Key(version, rng.randrange(4), length, address >> (bits - length) << (bits - length))


def columns(version: int, entries: dict[Key, Entry]) -> Entries:
    keys = np.array([encode(key) for key in entries], no_entries(version).keys.dtype)
    ranks = np.array([entry.rank for entry in entries.values()], np.uint32)
    handles = np.array([entry.handle for entry in entries.values()], np.uint32)
    return sorted_entries(Entries(version, keys, ranks, handles))


@given(VERSIONS, st.integers(0, 2**32))
def test_a_key_is_decoded_as_it_was_encoded(version: int, seed: int) -> None:
    rng = random.Random(seed)
    keys = list({random_key(rng, version) for _ in range(20)})
    array = np.array([encode(key) for key in keys], no_entries(version).keys.dtype)
    fields = zip(*key_fields(version, array), strict=True)
    assert [Key(version, scope, length, address) for scope, length, address in fields] == keys
    scopes, lengths, addresses = key_columns(version, array)
    for scope in range(4):
        mine = scopes == scope
        assert (encode_many(version, scope, lengths[mine], addresses[mine]) == array[mine]).all()


@given(VERSIONS)
def test_keys_sort_by_scope_then_length_then_address(version: int) -> None:
    rng = random.Random(version)
    keys = list({random_key(rng, version) for _ in range(100)})
    array = np.array([encode(key) for key in keys], no_entries(version).keys.dtype)
    assert [keys[at] for at in np.argsort(array)] == sorted(keys)


@pytest.mark.parametrize("merge_at", [0, 3, 1 << 16])
@given(version=VERSIONS, seed=st.integers(0, 2**32))
def test_the_index_is_a_dictionary(merge_at: int, version: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("firewall.address_index._MERGE_AT", merge_at)
        rng, index, model = random.Random(seed), AddressIndex(version), dict[Key, Entry]()
        for _ in range(30):
            key, entry = random_key(rng, version), Entry(rng.randrange(9), rng.randrange(9))
            step = rng.choice(("put", "put", "take", "add", "remove", "look"))
            if step == "put":
                index.put(key, entry)
                model[key] = entry
            elif step == "take":
                index.put(key, None)
                model.pop(key, None)
            elif step == "add":
                fresh = dict.fromkeys({random_key(rng, version) for _ in range(4)} - model.keys(), entry)
                index.add(columns(version, fresh))
                model |= fresh
            elif step == "remove":
                going = {each for each in model if rng.random() < 0.3}
                index.remove(columns(version, {each: model[each] for each in going}).keys)
                model = {each: kept for each, kept in model.items() if each not in going}
            else:
                asked = list({random_key(rng, version) for _ in range(6)})
                array = np.array([encode(each) for each in asked], no_entries(version).keys.dtype)
                assert index.contains(array).tolist() == [each in model for each in asked]
                assert dict(decoded(index.find(array))) == {
                    each: model[each] for each in asked if each in model
                }
            assert index.get(key) == model.get(key)
        found = index.entries()
        assert [key for key, _ in decoded(found)] == sorted(model)
        assert dict(decoded(found)) == model
