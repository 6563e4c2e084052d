"""Parts of many entries: what is taken out of them and what stays, beside Python's sets; and when many expire."""

from __future__ import annotations

import random

import numpy as np
import pytest

from firewall.address import parse_prefix
from firewall.address_index import no_entries
from firewall.datapath import Entries
from firewall.kernel import parts
from firewall.kernel.parts import Parts
from firewall.set_entries import SetEntry, entry_columns
from tests.unit.host import NOW, Host


def entries(numbers: set[int], version: int = 4) -> Entries:
    keys = np.array(sorted(numbers), np.uint64)
    if version == 6:
        keys = np.array([b"%018d" % number for number in sorted(numbers)], no_entries(6).keys.dtype)
    column = np.zeros(len(keys), np.uint32)
    return Entries(version, keys, column, column)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_out_is_found_once_and_is_not_there_any_more(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(parts, "SIZE", rng.choice((1, 3, 7)))
    version = rng.choice((4, 6))
    made, there = Parts(), set(rng.sample(range(60), rng.randrange(40)))
    made.add(entries(there, version))
    made.add(entries({100, 101}, 10 - version))
    for _ in range(5):
        asked = set(rng.sample(range(60), rng.randrange(30)))
        assert made.has(entries(asked, version)).tolist() == [number in there for number in sorted(asked)]
        found = made.leave_out(entries(asked, version))
        assert found.keys.tolist() == entries(asked & there, version).keys.tolist()
        there -= asked
        assert made.count(version) == len(there) and made.count(10 - version) == 2


def expiring(host: Host, *moments: float) -> None:
    listed = (
        SetEntry(parse_prefix(f"10.0.{at >> 8}.{at & 255}"), NOW + each) for at, each in enumerate(moments)
    )
    host.firewall.put_set("a")
    host.firewall.add_entries("a", entry_columns(listed))


@pytest.mark.parametrize(
    ("moments", "found"),
    [
        ([*range(10)], None),
        ([*range(20), 25, 25, 25.1, 25.5, 26], (25, 25.5)),  # behind some that go one by one
        ([25, 25, 25, 24.8], (24.8, 25)),
        ([25, 25.2, 25.4, 25.6, 25.61, 25.62], (25.2, 25.62)),
        ([60, 60, 60, 60, 60], None),  # later
        ([25, 25, 25], None),  # too few
    ],
)
def test_the_moment_is_found_at_which_many_expire(
    host: Host, moments: list[float], found: tuple[float, float] | None
) -> None:
    expiring(host, *moments)
    burst = host.firewall._set_store.burst(NOW, NOW + 40, 4, 0.5)
    assert (burst and tuple(round(each - NOW, 3) for each in burst)) == found
