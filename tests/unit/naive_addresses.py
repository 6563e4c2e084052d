"""What the address tables must hold, worked out anew from all rules: no counting, no edits.

It owns a naive reading of datapath design, part 1, that the tests of the tables and of the enforcer share.
"""

from __future__ import annotations

from collections.abc import Iterable

from firewall.datapath import Entry, Key, Occupancy
from firewall.rule import Rule

Handled = tuple[Rule, int]


def naive_entries(rules: Iterable[Handled]) -> dict[Key, list[tuple[int, bool, int, int]]]:
    """By prefix, (priority, is allow, handle, rank) of every rule there, the winner first."""
    lists: dict[Key, list[tuple[int, bool, int, int]]] = {}
    for each, handle in rules:
        is_destination = bool(each.destinations)
        for hook in {"ingress": [0], "egress": [1], "both": [0, 1]}[each.direction]:
            for prefix in each.destinations or each.sources:
                if each.family in ("any", f"ipv{prefix.version}"):
                    key = Key(prefix.version, hook * 2 + is_destination, prefix.length, prefix.address)
                    lists.setdefault(key, []).append(
                        (each.priority, each.action == "allow", handle, each.rank)
                    )
    return {key: sorted(found) for key, found in lists.items()}


def naive_winners(rules: Iterable[Handled]) -> dict[Key, Entry]:
    return {key: Entry(found[0][3], found[0][2]) for key, found in naive_entries(rules).items()}


def naive_occupancy(winners: Iterable[Key]) -> Occupancy:
    lengths = {4: [0, 0, 0, 0], 6: [0, 0, 0, 0]}
    for key in winners:
        lengths[key.version][key.scope] |= 1 << key.length
    four, six = ((each[0], each[1], each[2], each[3]) for each in lengths.values())
    return Occupancy(four, six)
