"""The audit of large tables, which takes several looks: what others changed is found, what we changed is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from firewall.address_list import parse_list
from firewall.kernel.keys import PREFIX
from firewall.layout import ADDRESS_ENTRY
from tests.datapath.loaded import Loaded

ENTRIES = 20_000
LOOKS = 12  # more than a walk takes


@pytest.fixture
def large(fresh: Loaded) -> Loaded:
    lines = (f"{20 + (n >> 14)}.{n >> 6 & 255}.{n & 63}.1" for n in range(ENTRIES))
    fresh.enforcer.import_list(parse_list("\n".join(lines)), "drop", 7, "ingress")
    fresh.add(id="web", protocols=["tcp"], destination_ports=["80"])
    fresh.kernel.settle()
    return fresh


def look(loaded: Loaded) -> list[str]:
    return loaded.kernel.audit(loaded.enforcer._ruleset.addresses)


def first(loaded: Loaded) -> tuple[np.ndarray, np.ndarray]:
    keys, values = next(loaded.kernel._set.maps["address4"].dump(PREFIX[4], ADDRESS_ENTRY, 4096))
    return keys[-1:], values[-1:]


def test_nothing_is_found_where_only_we_write(large: Loaded) -> None:
    for number in range(LOOKS):
        assert look(large) == []
        large.add(id=f"a{number}", sources=[f"203.0.113.{number}"])
        large.add(id=f"p{number}", protocols=["udp"], destination_ports=[number + 1])
        large.delete(f"a{number // 2}") if number % 2 else None
    for _ in range(LOOKS):
        assert look(large) == []


@pytest.mark.parametrize("busy", [False, True], ids=["at rest", "while rules change"])
@pytest.mark.parametrize("what", ["deleted", "added", "another rank"])
def test_one_entry_among_many_is_found(large: Loaded, what: str, busy: bool) -> None:
    table = large.kernel._set.maps["address4"]
    keys, values = first(large)
    if what == "deleted":
        table.delete_batch(keys)
    elif what == "added":
        keys["address"] += 1
        table.update_batch(keys, values)
    else:
        values["rank"] += 1
        table.update_batch(keys, values)
    found: list[str] = []
    for number in range(LOOKS * 2):
        told = look(large)
        assert told or not found, "it is told until a walk has found nothing"
        found += told
        if busy:
            large.add(id=f"a{number}", sources=[f"203.0.113.{number}"])
    assert found and all("address4" in each for each in found), found
    large.kernel.restore()
    large.kernel.reconcile(large.enforcer._image())
    for _ in range(LOOKS):
        assert look(large) == []


def test_growth_and_a_restart_are_no_drift(large: Loaded, tmp_path: Path) -> None:
    look(large)
    lines = (f"60.{n >> 8 & 255}.{n & 255}.1" for n in range(1 << 16))
    large.enforcer.import_list(parse_list("\n".join(lines)), "drop", 7, "ingress")
    for _ in range(LOOKS):
        assert look(large) == []
    large.restart()
    for _ in range(LOOKS):
        assert look(large) == []


def test_larger_policy_tables_are_no_drift(large: Loaded) -> None:
    """Their programs come with descriptors of their own, and those of a walk that was under way are closed."""
    before = large.kernel._set
    assert look(large) == []
    rules = [
        {
            "id": f"p{n}",
            "protocols": ["tcp"],
            "destination_ports": [str(n)],
            "sources": [f"198.51.{n >> 8}.{n & 255}"],
        }
        for n in range(1, 4000)
    ]
    large.batch(rules, [])
    assert large.kernel._set is not before
    for _ in range(LOOKS):
        assert look(large) == []
