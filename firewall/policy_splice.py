"""A policy whose rules stay while a few addresses of sets that they name come and go: only what lies there is compiled.

Owns the windows, which are the prefixes that came or went: outside of them every address is in the same prefixes as
before. Values: the arrays of a policy are copied, never changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firewall.address import BITS
from firewall.layout import C
from firewall.policy import HookPolicy, Policy
from firewall.policy_addresses import Classes, Intervals, address_intervals
from firewall.policy_columns import Ints, PolicyRule, Ranges, RuleColumns, Sets, rule_columns
from firewall.set_keys import NO_KEYS, PrefixRanges

Windows = Mapping[int, PrefixRanges]  # by IP version
Mask = npt.NDArray[np.bool_]


def with_sets(columns: RuleColumns, rules: Iterable[PolicyRule], sets: Sets, windows: Windows) -> RuleColumns:
    """The rules name the sets as before, and what is in these is other than before in the windows alone."""
    again = list(rules)
    rows = np.flatnonzero(np.isin(columns.handles, [each.handle for each in again]))
    row_of = dict(zip(columns.handles[rows].tolist(), rows.tolist(), strict=True))
    made: dict[str, Any] = {}
    for version in BITS:
        mine = windows[version]
        if not len(mine.starts):
            continue
        had = columns.prefixes(version)
        stays = ~(_inside(had, mine) & np.isin(had.rows, rows))
        parts = [had if stays.all() else had.only(stays)]
        for each in again:
            fresh = _asked(each, sets, version, mine)
            parts.append(replace(fresh, rows=np.full(len(fresh.rows), row_of[each.handle])))
        made[f"prefixes{version}"] = parts[0].then(*parts[1:])
    return replace(columns, **made)


def _asked(rule: PolicyRule, sets: Sets, version: int, windows: PrefixRanges) -> Ranges:
    """What the rule asks that lies in the windows."""
    plain = rule_columns([rule]).prefixes(version)
    parts = [plain.only(_inside(plain, windows))]
    for side, names in enumerate((rule.rule.source_sets, rule.rule.destination_sets)):
        for name in names:
            starts, ends, lengths = _within(sets.get(name, NO_KEYS).ranges(version), windows)
            zeros = np.zeros(len(starts), np.int64)
            parts.append(Ranges(zeros, np.full(len(starts), side, np.uint8), starts, ends, lengths))
    return parts[0].then(*parts[1:])


def _within(ranges: PrefixRanges, windows: PrefixRanges) -> PrefixRanges:
    """Of disjoint prefixes those that are a window or lie in one."""
    begins = np.searchsorted(ranges.starts, windows.starts, "left")
    pasts = np.searchsorted(ranges.starts, windows.ends, "left")
    pasts[~windows.ends.astype(np.bool_)] = len(ranges.starts)
    rows = np.concatenate([np.arange(a, b) for a, b in zip(begins.tolist(), pasts.tolist(), strict=True)])
    near = np.repeat(windows.lengths, pasts - begins)
    rows = rows[ranges.lengths[rows] >= near]
    return ranges.only(rows)


def spliced(policy: Policy, rules: RuleColumns, handles: Collection[int], windows: Windows) -> Policy | None:
    """`rules`: as they are now; `handles`: of those whose addresses changed. None where addresses are now in rules
    together that were in no prefix together before: then all has to be compiled."""
    changed = np.isin(rules.handles, np.fromiter(handles, np.int64, len(handles)))
    near = {
        version: ranges.only(_touching(ranges, windows[version])) if len(windows[version].starts) else None
        for version in BITS
        for ranges in (rules.prefixes(version),)
    }
    hooks = []
    for hook, image in enumerate(policy.hooks):
        made = _spliced_hook(policy, image, rules, changed & (rules.hooks >> hook & 1 == 1), near, windows)
        if made is None:
            return None
        hooks.append(made)
    return replace(policy, hooks=(hooks[0], hooks[1]))


def _spliced_hook(
    policy: Policy,
    image: HookPolicy,
    rules: RuleColumns,
    changed: Mask,
    near: Mapping[int, Ranges | None],
    windows: Windows,
) -> HookPolicy | None:
    bits = _bits(image, rules)
    made: dict[str, Any] = {}
    for version, ranges in near.items():
        if ranges is None or not changed.any():
            continue
        sides = list(image.intervals(version))
        for side in range(C["SIDE_COUNT"]):
            if not (changed & (rules.addresses >> side & 1 == 1)).any():
                continue
            is_mine = (bits >= 0) & (rules.versions >> (version == 6) & 1).astype(np.bool_)
            mine = ranges.only((ranges.sides == side) & is_mine[ranges.rows])
            found = _spliced(policy, sides[side], mine, bits[mine.rows], windows[version])
            if found is None:
                return None
            sides[side] = found
        made[f"intervals{version}"] = tuple(sides)
    return replace(image, **made) if made else image


def _bits(image: HookPolicy, rules: RuleColumns) -> Ints:
    """By row, -1 for a rule of the other hook."""
    known = np.flatnonzero(image.rules["handle"])
    handles = image.rules["handle"][known].astype(np.int64)
    order = np.argsort(handles)
    bits = np.full(len(rules), -1, np.int64)
    if len(known):
        at = np.searchsorted(handles[order], rules.handles).clip(max=len(known) - 1)
        is_there = handles[order][at] == rules.handles
        bits[is_there] = known[order][at[is_there]]
    return bits


def _spliced(
    policy: Policy, before: Intervals, ranges: Ranges, bits: Ints, windows: PrefixRanges
) -> Intervals | None:
    """`ranges`: those that touch the windows, with the bits of their rules."""
    first, classes = next(
        (first, each) for first, each in policy.classes if 0 <= int(before.classes[0]) - first < len(each)
    )
    inner, inner_classes = address_intervals(ranges, bits, classes.vectors[0])
    numbers = _numbers(classes, inner_classes)
    starts: list[npt.NDArray[Any]] = []
    owners: list[npt.NDArray[Any]] = []
    at = 0
    for number, start in enumerate(windows.starts):
        end = windows.ends[number]
        is_last = not end
        begin = int(np.searchsorted(before.starts, start, "left"))
        past = len(before) if is_last else int(np.searchsorted(before.starts, end, "left"))
        starts.append(before.starts[at:begin])
        owners.append(before.classes[at:begin])
        low = int(np.searchsorted(inner.starts, start, "right")) - 1
        high = len(inner) if is_last else int(np.searchsorted(inner.starts, end, "left"))
        mine = numbers[inner.classes[low:high]]
        if (mine < 0).any():
            return None
        starts += [
            windows.starts[number : number + 1].astype(before.starts.dtype),
            inner.starts[low + 1 : high],
        ]
        owners.append((mine + first).astype(np.uint32))
        meets_next = number + 1 < len(windows.starts) and windows.starts[number + 1] == end
        if not is_last and not meets_next and (past == len(before) or before.starts[past] != end):
            starts.append(windows.ends[number : number + 1].astype(before.starts.dtype))
            owners.append(before.classes[past - 1 : past])
        at = past
    starts.append(before.starts[at:])
    owners.append(before.classes[at:])
    every, owner = np.concatenate(starts), np.concatenate(owners)
    is_first = np.append(True, owner[1:] != owner[:-1])
    return Intervals(every[is_first], owner[is_first])


def _numbers(known: Classes, some: Classes) -> Ints:
    """Which of the known classes each is, -1 for none."""
    places = {row.tobytes(): at for at, row in enumerate(known.vectors)}
    return np.array([places.get(row.tobytes(), -1) for row in some.vectors], np.int64)


def _inside(ranges: Ranges, windows: PrefixRanges) -> Mask:
    """Prefixes that are a window or lie in one."""
    at = np.searchsorted(windows.starts, ranges.starts, "right") - 1
    near = at.clip(min=0)
    ends = windows.ends[near]
    in_time = (at >= 0) & ((ranges.starts < ends) | ~ends.astype(np.bool_))
    return np.asarray(in_time & (ranges.lengths >= windows.lengths[near]))


def _touching(ranges: Ranges, windows: PrefixRanges) -> Mask:
    """Those, and the ones that a window lies in."""
    first = np.searchsorted(windows.starts, ranges.starts, "left")
    past = np.searchsorted(windows.starts, ranges.ends, "left")
    past[~ranges.ends.astype(np.bool_)] = len(windows.starts)
    return np.asarray((past > first) | _inside(ranges, windows))
