"""The whole rule set held against itself: rules that decide nothing, or nothing that others do not decide as well.

Owns putting together what is found of address rules by the million and of policy rules one by one. Works on a frozen
rule set, away from the enforcer's lock; names rules by their handles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firewall import address_cover
from firewall.address_cover import NOBODY, Places, handles_of, ranks_of
from firewall.analysis import Neighbours, address_ranks, same_packets
from firewall.containment import match_of
from firewall.layout import C
from firewall.policy import PolicyRule
from firewall.policy_columns import Ints
from firewall.ruleset import Ruleset

CODES = ("shadowed", "redundant", "duplicate", "matches_nothing", "no_interface", "never_drop")


class Finding(NamedTuple):
    """`other`: handle of the other rule, 0 for none."""

    handle: int
    code: str
    other: int


@dataclass(frozen=True)
class Report:
    """What was found, sorted by handle, as columns; `codes` index CODES."""

    handles: Ints
    codes: npt.NDArray[np.uint8]
    others: Ints

    def __len__(self) -> int:
        return len(self.handles)

    def page(self, offset: int, limit: int) -> list[Finding]:
        rows = slice(offset, offset + limit)
        columns = zip(
            self.handles[rows].tolist(), self.codes[rows].tolist(), self.others[rows].tolist(), strict=True
        )
        return [Finding(handle, CODES[code], other) for handle, code, other in columns]


def analyse(
    ruleset: Ruleset,
    names: Collection[str],
    nothing: Collection[int],
    is_over: Callable[[], bool] = lambda: False,
) -> Report:
    """`ruleset`: frozen. `names`: of the interfaces there are. `nothing`: handles of address rules that no packet can
    match. Ends early, with what it has, when `is_over` says so."""
    neighbours = Neighbours(ruleset)
    plain = [(each.rule.rank, each.handle, match_of(each.rule)) for each in neighbours.plain]
    report = of_addresses(
        address_cover.places(ruleset.addresses, plain),
        address_ranks(ruleset.addresses),
        np.array([each.rule.rank for each in ruleset.policy_rules.values()], np.int64),
        ruleset.addresses.layers.handles,
    )
    found = [Finding(handle, "matches_nothing", 0) for handle in nothing]
    for each in ruleset.policy_rules.values():
        if is_over():
            break
        found += of_policy_rule(each, neighbours, names)
    return _sorted(report, found)


def of_policy_rule(each: PolicyRule, neighbours: Neighbours, names: Collection[str]) -> list[Finding]:
    rule, handle = each.rule, each.handle
    if match_of(rule).is_empty:
        return [Finding(handle, "matches_nothing", 0)]
    found = [Finding(handle, "no_interface", 0)] if unmatched(rule.interfaces, names) else []
    beaten = neighbours.beaten(rule, handle)
    if beaten is not None:
        other = beaten.named
        if not other:
            return [*found, Finding(handle, "never_drop", 0)]
        twin = neighbours.policy_rule(other)
        is_twin = twin is not None and twin.rule.action == rule.action and same_packets(twin.rule, rule)
        if not is_twin:
            found.append(Finding(handle, beaten.code, other))
        elif beaten.code == "shadowed":  # of two alike, the one that loses
            found.append(Finding(handle, "duplicate", other))
    elif (repeated := neighbours.repeated(rule, handle)) is not None and not same_packets(
        repeated.rule, rule
    ):
        found.append(Finding(handle, "redundant", repeated.handle))
    return found


def unmatched(globs: Collection[str], names: Collection[str]) -> list[str]:
    """Names and globs that fit no interface."""
    return [glob for glob in globs if not any(fnmatchcase(name, glob) for name in names)]


def of_addresses(
    places: Places, address_ranks: Ints, policy_ranks: Ints, of_sets: Collection[int] = ()
) -> Report:
    """A rule is accused where all its prefixes are; not one of `of_sets`, which names sets: they change."""
    is_before = places.before != NOBODY
    is_behind = ~is_before & (places.behind != NOBODY) & _nothing_between(places, address_ranks, policy_ranks)
    taken = np.where(is_before, places.before, np.where(is_behind, places.behind, NOBODY))
    own = places.codes
    is_older = handles_of(taken) < handles_of(own)
    wins = (ranks_of(taken) < ranks_of(own)) | (
        (ranks_of(taken) == ranks_of(own)) & is_older & ~address_cover.is_policy(taken)
    )
    handles, first, at = np.unique(places.handles, return_index=True, return_inverse=True)
    accused = np.ones(len(handles), np.bool_)
    accused[at[taken == NOBODY]] = False
    loses = np.ones(len(handles), np.bool_)
    loses[at[~wins]] = False
    codes = np.where(loses, CODES.index("shadowed"), CODES.index("redundant")).astype(np.uint8)
    others = handles_of(taken[first]).astype(np.int64)
    codes[others == 0] = CODES.index("never_drop")
    accused &= handles != 0  # that of never_drop, which is no rule
    accused &= ~np.isin(handles, np.fromiter(of_sets, handles.dtype))
    return Report(handles[accused].astype(np.int64), codes[accused], others[accused])


def _nothing_between(places: Places, address_ranks: Ints, policy_ranks: Ints) -> npt.NDArray[np.bool_]:
    """Where the first behind a place has the same action, and no rule of the other has a rank between the two."""
    own, behind = ranks_of(places.codes), ranks_of(places.behind)
    same = (own ^ behind) & np.uint64(C["RANK_ALLOW"]) == 0
    ranks = np.unique(np.concatenate((address_ranks, policy_ranks))).astype(np.uint64)
    for allows in (0, C["RANK_ALLOW"]):
        others = ranks[ranks & np.uint64(C["RANK_ALLOW"]) != allows]
        mine = own & np.uint64(C["RANK_ALLOW"]) == allows
        between = np.searchsorted(others, behind, "left") > np.searchsorted(others, own, "right")
        same &= ~(mine & between)
    return np.asarray(same)


def _sorted(report: Report, found: list[Finding]) -> Report:
    handles = np.concatenate((report.handles, np.array([each.handle for each in found], np.int64)))
    codes = np.concatenate((report.codes, np.array([CODES.index(each.code) for each in found], np.uint8)))
    others = np.concatenate((report.others, np.array([each.other for each in found], np.int64)))
    order = np.argsort(handles, kind="stable")
    return Report(handles[order], codes[order], others[order])
