"""What hardware is asked to judge: rules that are addresses alone, and none that only observes."""

from __future__ import annotations

import numpy as np
import pytest

from firewall.address_index import encode_many
from firewall.datapath import Change, Edit, Entries, Entry, Key, Link, Occupancy
from firewall.errors import Conflict, TableFull
from firewall.kernel.offload import OffloadDevice, check_change, edits_of
from firewall.policy import Policy, PolicyRule, compile_policy
from firewall.rule import rule_from_fields


def policy_of(**fields: object) -> Policy:
    return compile_policy([PolicyRule(rule_from_fields(fields, "r", 0.0), 1, 0)], {})


def test_rules_that_observe_are_no_matter_of_the_hardware() -> None:
    device = OffloadDevice.__new__(OffloadDevice)  # without a card
    device._link, device._entries, device.capacity = Link(2, "eth0", True, True), {}, 2
    device.check((), policy_of(protocols="tcp", mode="observe"))
    device.check((), policy_of(sources="10.0.0.1", mode="observe"))
    with pytest.raises(Conflict, match="hardware"):
        device.check((), policy_of(protocols="tcp"))


def entries(*hosts: int, handle: int = 1) -> Entries:
    addresses = np.array(hosts, ">u4").view(np.uint8).reshape(-1, 4)
    keys = encode_many(4, 0, np.full(len(hosts), 32, np.uint8), addresses)
    return Entries(4, keys, np.full(len(hosts), 7, np.uint32), np.full(len(hosts), handle, np.uint32))


def test_entries_that_come_by_the_million_are_the_hardwares_too() -> None:
    here = Occupancy()
    changed = (entries(5), entries(5, handle=2))
    change = Change([], here, here, come=[entries(1, 2, 3)], gone=[entries(4)], changed=[changed])
    old, new = Entry(7, 1), Entry(7, 2)
    keys = [Key(4, 0, 32, host) for host in range(6)]
    assert edits_of(change) == [
        *(Edit(key, None, old) for key in keys[1:4]),
        Edit(keys[4], old, None),
        Edit(keys[5], old, new),
    ]
    device = OffloadDevice.__new__(OffloadDevice)
    device._link, device._entries, device.capacity = Link(2, "eth0", True, True), {keys[4]: old}, 2
    with pytest.raises(TableFull, match="hardware"):
        check_change([device], edits_of(change), change)
