"""What the parts of the enforcer share: the store, the kernel, the compiled rules, and the one lock over them.

Owns making the kernel hold just what the store says. No change and no answer is made here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from firewall.address import BITS
from firewall.address_index import encode_many
from firewall.address_list import PrefixColumns
from firewall.datapath import Change, Entries, Image, Kernel
from firewall.drift import DriftWatch
from firewall.hits import Hits
from firewall.interfaces import Interfaces
from firewall.layout import C
from firewall.named_sets import NO_COUNTERS, CountingSet
from firewall.policy import Policy
from firewall.reporting import Reporting, ReportLimits
from firewall.ruleset import Ruleset
from firewall.set_store import SetStore
from firewall.shield import Panic, Shield
from firewall.store import Block, Store


@dataclass(frozen=True)
class Limits:
    """`addresses`: entries a table, `rules`: policy rules, `audit`: entries of the audit that are kept."""

    addresses: int
    rules: int
    audit: int = 100_000


@dataclass(frozen=True)
class About:
    """What the status tells of the settings."""

    version: str
    pin_root: str
    default_ingress: str
    default_egress: str


@dataclass(frozen=True)
class Manner:
    """What else a reload can change. `options`: OPTION_* by hook; `heals`: puts back what is ours after drift."""

    options: tuple[int, int]
    heals: bool
    reports: ReportLimits = field(default_factory=ReportLimits)
    shield: Shield = field(default_factory=Shield)


class InForce:
    """`_options`: those in force; `_panic` with `_panic_policy`: what is in force instead of the rules. `_resets`: by
    handle, what is subtracted from counters. `_adrift`: why maps and store may differ, None where they do not. `_owed`:
    hits by handle that the maps have no more and the store has not yet. All under `_lock`."""

    # Called when a change began to wait for its confirmation, or panic for its end. Whoever runs the service puts
    # another in its place.
    on_pending: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        interfaces: Interfaces,
        limits: Limits,
        about: About,
        manner: Manner,
        clock: Callable[[], float],
    ) -> None:
        """`manner`: its options are those that the kernel was made with; `clock`: seconds since 1970."""
        self._store = store
        self._set_store = SetStore(store)
        self._kernel = kernel
        self._interfaces = interfaces
        self._limits = limits
        self._about = about
        self._manner, self._shield = manner, manner.shield
        self._options = manner.options
        self._panic: Panic | None = None
        self._panic_policy: Policy | None = None
        self._clock = clock
        self._started_at = clock()
        self._lock = threading.RLock()
        self._ruleset = self._empty_ruleset({})
        self._watched = DriftWatch(kernel, interfaces, lambda: self._ruleset.addresses, self._image)
        self._watched.heals = manner.heals
        self.reporting = Reporting(store.ids_of, manner.reports)
        self._is_started = False
        self._adrift: str | None = None
        self._owed: dict[int, Hits] = {}
        self._resets = store.resets()
        self._last_seen: dict[str, object] = {}
        self.last_error: str | None = None

    def _empty_ruleset(
        self, slots: dict[int, int], counting: Mapping[int, CountingSet] | None = None
    ) -> Ruleset:
        return Ruleset(2 * self._limits.rules, slots, counting)

    def _load(self, slots: dict[int, int], protected: dict[str, int]) -> None:
        """The stored rules become those in force. `slots`: of policy rules, by handle, that count already."""
        counting = self._ruleset.policy.named.known if self._is_started else self._kernel.counting_sets()
        ruleset = self._empty_ruleset(slots, counting)
        sets = {each.name: self._set_store.keys(each.number) for each in self._set_store.sets()}
        imported = [self._block_entries(block) for block in self._store.blocks()]
        fresh_slots = ruleset.load(self._store.loose(), imported, protected, self._shield.never_drop, sets)
        self._reserve(ruleset.addresses.sizes(), ruleset.policy)
        self._kernel.reconcile(self._image(fresh_slots, ruleset))
        self._ruleset = ruleset

    def _image(self, fresh_slots: Sequence[int] = (), ruleset: Ruleset | None = None) -> Image:
        """Everything that the maps should hold."""
        whole = ruleset or self._ruleset
        addresses = whole.addresses
        return Image(
            {version: addresses.winners(version) for version in BITS},
            addresses.occupancy,
            self._policy_in_force(whole),
            fresh_slots,
            NO_COUNTERS if ruleset is None else ruleset.fresh_entries,
        )

    def _policy_in_force(self, ruleset: Ruleset) -> Policy:
        return ruleset.policy if self._panic is None else self._panic_policy or ruleset.policy

    def _apply(self, change: Change) -> dict[int, Hits]:
        """A change of the rules. While panic is on, policies wait for its end."""
        return self._kernel.apply(change if self._panic is None else change.without_policy())

    def _reserve(self, sizes: dict[int, int], policy: Policy) -> None:
        self._kernel.reserve(sizes, policy)
        if self._panic is not None and self._panic_policy is not None:
            self._kernel.reserve(sizes, self._panic_policy)

    def _block_entries(self, block: Block) -> Entries:
        left = self._store.block_rules(block)
        return block_entries(block, PrefixColumns(block.version, left.lengths, left.addresses), left.numbers)


def block_scope(block: Block) -> int:
    is_ingress = block.direction == "ingress"
    hook = C["HOOK_INGRESS"] if is_ingress else C["HOOK_EGRESS"]
    return hook << C["SCOPE_HOOK_BIT"] | (C["SIDE_SOURCE"] if is_ingress else C["SIDE_DESTINATION"])


def block_entries(block: Block, columns: PrefixColumns, numbers: npt.NDArray[np.int64]) -> Entries:
    """What a block's rules are in the address tables; `columns` as sorted as they were stored."""
    keys = encode_many(block.version, block_scope(block), columns.lengths, columns.addresses)
    ranks = np.full(len(keys), block.rank, np.uint32)
    return Entries(block.version, keys, ranks, (block.first_handle + numbers).astype(np.uint32))
