"""The filter before the address tables holds the bits of every entry, whatever happened to the tables.

A bit that is missing lets a listed packet through, so its tests look into the maps; a bit too many costs a probe, so
there must come a moment at which it goes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firewall.address_list import parse_list
from firewall.errors import KernelRefused
from firewall.kernel.address_filter import AddressFilter
from firewall.presence import MASK_MIN
from tests.datapath.contents import assert_exact, assert_filter_complete, bits_set
from tests.datapath.frames import tcp
from tests.datapath.loaded import Judged, Loaded
from tests.datapath.sabotage import Sabotage

PASSES, DROPPED = Judged("pass", "default"), Judged("drop", "rule")


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sabotage]:
    made = Sabotage(monkeypatch)
    yield made
    made.repair()


def prefix(rng: random.Random) -> str:
    """Of few networks, so that prefixes meet in a region and come again."""
    if rng.random() < 0.5:
        length = rng.choice((0, 7, 15, 16, 17, 24, 31, 32, 32))
        address = rng.choice((0x0A000000, 0x0A010000, 0xC6336400)) | rng.getrandbits(10)
        address = address >> (32 - length) << (32 - length)
        return ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0)) + f"/{length}"
    length = rng.choice((0, 1, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128))
    address = (
        (0x20010DB8 << 96 | rng.getrandbits(2) << 64 | rng.getrandbits(8)) >> (128 - length) << (128 - length)
    )
    return ":".join(f"{address >> shift & 0xFFFF:x}" for shift in range(112, -1, -16)) + f"/{length}"


def change(firewall: Loaded, rng: random.Random, *more_kinds: str) -> None:
    ids = [rule.id for rule in firewall.enforcer.export()[0]]
    rules = [
        {
            "id": f"n{rng.getrandbits(40)}",
            rng.choice(("sources", "destinations")): sorted({prefix(rng) for _ in range(rng.randint(1, 6))}),
            "direction": rng.choice(("ingress", "egress", "both")),
        }
        for _ in range(rng.randint(0, 3))
    ]
    some = rng.sample(ids, min(len(ids), rng.randint(0, 3)))
    kind = rng.choice(("batch", "batch", "one", "import", "replace", "settle", *more_kinds))
    if kind == "batch":
        firewall.batch(rules, some)
    elif kind == "one" and some:
        firewall.delete(some[0])
    elif kind == "one":
        firewall.add(id=f"n{rng.getrandbits(40)}", sources=[prefix(rng)])
    elif kind == "import":
        text = "\n".join({prefix(rng) for _ in range(20)})
        firewall.enforcer.import_list(parse_list(text), "drop", rng.randint(0, 5), "ingress")
    elif kind == "replace":
        firewall.rules(*rules)
    elif kind == "settle":
        firewall.kernel.settle()
    else:
        firewall.restart()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_every_entry_has_its_bits_after_every_change(firewall: Loaded, seed: int) -> None:
    rng = random.Random(seed)
    firewall.rules()
    for _ in range(10):
        change(firewall, rng, "crash")
        assert_filter_complete(firewall)
    assert_exact(firewall)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_every_entry_has_its_bits_whatever_the_kernel_refuses(
    firewall: Loaded, sabotage: Sabotage, seed: int
) -> None:
    rng = random.Random(seed)
    sabotage.repair()
    firewall.rules()
    for _ in range(12):
        sabotage.begin(rng.randint(0, 5), goes_on=rng.random() < 0.3)
        try:
            change(firewall, rng)
        except KernelRefused:
            pass
        finally:
            sabotage.repair()
        assert_filter_complete(firewall)
    firewall.restart()
    assert_exact(firewall)


def crowd(count: int) -> list[str]:
    return [f"100.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(count)]


def mask(firewall: Loaded) -> int:
    return int(firewall.kernel._set.maps.control["filter_mask"])


class Dies(BaseException):
    """The process ends here: nobody undoes anything."""


@pytest.mark.parametrize("step", ["_mark_all", "_wait", "renew"])
def test_a_filter_whose_growth_is_cut_off_serves_all_the_same(
    fresh: Loaded, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    fresh.rules({"id": "many", "sources": crowd(1500)}, {"id": "six", "sources": ["2001:db8::1"]})
    assert mask(fresh) == MASK_MIN

    def die(*_: object) -> None:
        raise Dies

    with monkeypatch.context() as patch:
        if step == "_wait":
            fresh.kernel._datapath._filter._wait = die
        else:
            patch.setattr(AddressFilter, step, die)
        with pytest.raises(Dies):
            fresh.add(id="more", sources=[f"101.0.{n >> 8}.{n & 255}" for n in range(2000)])
    assert_filter_complete(fresh)
    assert {fresh.judge(tcp(source)) for source in (*crowd(1500)[::37], "2001:db8::1")} == {DROPPED}
    fresh.restart()
    assert_exact(fresh)
    fresh.add(id="more", sources=[f"101.0.{n >> 8}.{n & 255}" for n in range(2000)])
    assert mask(fresh) > MASK_MIN
    assert_exact(fresh)
    assert {fresh.judge(tcp(source)) for source in (*crowd(1500)[::37], "101.0.7.0")} == {DROPPED}
    assert fresh.judge(tcp("102.0.0.1")) == PASSES


def test_a_filter_that_is_made_anew_in_parts_has_every_bit_meanwhile_and_no_other_at_the_end(
    fresh: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firewall.kernel.address_filter._KEYS_A_PART", 1)
    rng = random.Random(5)
    made = fresh.kernel._datapath._filter
    for _ in range(30):
        made._left_behind = made._mask + 1
        for _ in range(rng.randint(1, 6)):
            change(fresh, rng)
            assert_filter_complete(fresh)
    made._left_behind = made._mask + 1
    for _ in range(2000):
        fresh.kernel.settle()
        if made._renewal is None and not made._left_behind:
            break
    else:
        raise AssertionError("it never ends")
    left = bits_set(fresh)
    fresh.restart()
    assert bits_set(fresh) == left
    assert_exact(fresh)


def test_bits_that_nobody_needs_go(fresh: Loaded) -> None:
    fresh.rules({"id": "stays", "sources": ["10.0.0.1", "2001:db8::1"]})
    fresh.restart()
    needed = bits_set(fresh)
    for _ in range(4):
        fresh.add(id="many", sources=crowd(300))
        assert bits_set(fresh) > needed
        fresh.delete("many")
        fresh.kernel.settle()
    assert bits_set(fresh) <= needed + 2 * 300 + 2, "more than one crowd has left its bits"
    fresh.restart()
    assert bits_set(fresh) == needed
    assert_exact(fresh)
