"""The spine: a change goes from valid rules through the store into the kernel, or leaves both as they were.

Owns the order of a change (plan, check room, write, apply, commit) and the one lock under which it happens.
Reads answer from the committed state. Expiry, and interfaces that come and go, are changes like any other.
"""

from __future__ import annotations

import platform
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import structlog

from firewall.address import BITS, Prefix
from firewall.address_index import decoded, encode_many
from firewall.address_list import PrefixColumns
from firewall.addresses import address_keys
from firewall.datapath import Change, Entries, Image, Kernel, LeftOver
from firewall.drift import DriftWatch
from firewall.errors import (
    AlreadyExists,
    FirewallError,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    Problem,
    StoreFailed,
    table_full,
)
from firewall.following import Following, tell
from firewall.hits import NO_HITS, Hits
from firewall.interfaces import Interfaces
from firewall.layout import HOOKS, REASONS, VERDICTS, C
from firewall.policy import Policy
from firewall.rule import Rule
from firewall.ruleset import Ruleset, RulesetPlan, is_policy
from firewall.settings import Interface
from firewall.store import Block, InterfaceRequest, InterfaceTotal, Record, Store
from firewall.view import (
    BatchOutcome,
    CounterView,
    ImportOutcome,
    InterfaceView,
    MapView,
    RuleQuery,
    RuleView,
    StatusView,
)

log = structlog.get_logger()

_EXPIRY_CHUNK = 10_000
_WATCH_S = 0.5
_LOOK_S = 2.0  # between looks at what no message tells of


@dataclass(frozen=True)
class Limits:
    """`addresses`: entries a table, `rules`: policy rules."""

    addresses: int
    rules: int

    @property
    def words(self) -> int:
        return -(-self.rules // 64)


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


class Enforcer:
    """The rules in force. Every method may be called from any thread."""

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
        self._kernel = kernel
        self._interfaces = interfaces
        self._limits = limits
        self._about = about
        self._options = manner.options
        self._clock = clock
        self._started_at = clock()
        self._lock = threading.RLock()
        self._ruleset = self._empty_ruleset({})
        self._following = Following(store, kernel, interfaces, self._apply_interfaces)
        self._drift = DriftWatch(kernel, interfaces, lambda: self._ruleset.addresses, self._image)
        self._drift.heals = manner.heals
        self._is_started = False
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.last_error: str | None = None

    def _empty_ruleset(self, slots: dict[int, int]) -> Ruleset:
        return Ruleset(self._limits.words, 2 * self._limits.rules, slots)

    # -- life

    def start(self) -> None:
        """Loads the programs, makes the maps hold the stored rules, attaches. Raises FirewallError."""
        with self._lock:
            now = self._clock()
            while expired := self._store.expired(now, _EXPIRY_CHUNK):
                with self._store.transaction():
                    self._store.write_rules([each.handle for each in expired], [])
            self._ruleset = self._empty_ruleset(self._kernel.start(int(self._store.identity, 16)))
            _, come = self._interfaces.gone_and_come()
            protected = {link.name: link.ifindex for link, _ in come}
            imported = [self._block_entries(block) for block in self._store.blocks()]
            fresh_slots = self._ruleset.load(self._store.loose(), imported, protected)
            self._reserve(self._ruleset.addresses.sizes(), self._ruleset.policy)
            self._kernel.reconcile(self._image(fresh_slots))
            for link, request in come:
                tell(self._following.hold(self._interfaces.hold, link, request))
            for link, hook in self._kernel.detach_from_others(self._interfaces.protected().values()):
                log.info("detached", interface=link.name, hook=HOOKS[hook], reason="not asked for any more")
            self._save_left_over(self._kernel.release())
            self._is_started = True
        self._watcher.start()

    def _save_left_over(self, left: LeftOver) -> None:
        """What only maps know that are about to go, or are gone."""
        if left.rules or left.interfaces:
            names = {ifindex: name for name, ifindex in self._interfaces.protected().items()}
            with self._store.transaction():
                self._store.add_hits(left.rules.items())
                for ifindex, totals in left.interfaces.items():
                    self._store.add_interface_hits(
                        InterfaceTotal(names.get(ifindex, f"#{ifindex}"), *each) for each in totals
                    )

    def _image(self, fresh_slots: Sequence[int] = ()) -> Image:
        """Everything that the maps should hold."""
        addresses = self._ruleset.addresses
        return Image(
            {version: addresses.winners(version) for version in BITS},
            addresses.length_words(),
            addresses.occupancy,
            self._ruleset.policy,
            fresh_slots,
        )

    def stop(self, keep: bool = False) -> None:
        """Saves the counters, detaches, unpins; or, to `keep` the filters, leaves all that to the next start."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._kernel.wake()
            self._watcher.join()
        with self._lock, ExitStack() as leaving:  # from the last to the first, each whatever the others say
            leaving.callback(self._store.close)
            if self._is_started:
                self._is_started = False
                leaving.callback(self._kernel.stop, keep)
                if not keep:
                    for held in self._interfaces.all_held():
                        leaving.callback(self._interfaces.release, held)
                    leaving.callback(self._save_hits)
                leaving.callback(self._kernel.settle)

    def _save_hits(self) -> None:
        """Everything that only the maps know, before they go."""
        policy = list(self._ruleset.policy_rules.values())
        hits = self._kernel.policy_hits([each.slot for each in policy])
        by_handle = {each.handle: hit for each, hit in zip(policy, hits, strict=True)}
        by_handle |= self._kernel.all_address_hits()
        self._save_left_over(LeftOver(by_handle, self._kernel.interface_hits()))

    def _watch(self) -> None:
        next_look = 0.0
        while not self._stopping.is_set():
            happened = self._kernel.wait(self._until_next_expiry())
            if self._stopping.is_set():
                return
            is_time = time.monotonic() >= next_look
            steps = [self._kernel.settle, self._expire]
            if happened or is_time:
                steps.append(partial(self._following.follow, happened))
                steps.append(partial(self._drift.look_at_hooks, happened))
            if is_time:
                steps += [self._drift.look_around, self._look_at_store]
                next_look = time.monotonic() + _LOOK_S
            failed = [step for step in steps if not self._try(step)]
            if failed:  # no hot loop while something is wrong
                self._stopping.wait(_WATCH_S)

    def _look_at_store(self) -> None:
        """Only after a failure: a host at rest writes nothing."""
        if self._drift.store_failed:
            self._store.try_writing()
            self._drift.note_store(None)

    def _try(self, step: Callable[[], None]) -> bool:
        try:
            with self._lock:
                step()
        except FirewallError as error:
            self._note(error)
            log.error("watch failed", error=str(error))
            return False
        except Exception as error:
            self.last_error = repr(error)
            log.exception("watch failed")
            return False
        return True

    def _until_next_expiry(self) -> float:
        try:
            moment = self._store.next_expiry()
        except FirewallError:
            return _WATCH_S
        return _WATCH_S if moment is None else min(_WATCH_S, max(0.0, moment - self._clock()))

    def _expire(self) -> None:
        while expired := self._store.expired(self._clock(), _EXPIRY_CHUNK):
            self._change(expired, [])
            log.info("rules expired", count=len(expired))

    # -- changes of rules

    def add(self, rule: Rule) -> tuple[RuleView, bool]:
        """The rule and whether it is new: the same rule again is no change. Raises AlreadyExists."""
        with self._lock:
            present = self._store.by_id(rule.id)
            if present is not None:
                if not present.rule.asks_same_as(rule):
                    raise _exists(rule.id)
                return self._view(present), False
            self._interfaces.check_names(rule)
            record = self._new_record(rule, self._store.next_handle)
            self._change([], [record])
            return _fresh_view(record), True

    def replace(self, rule: Rule) -> RuleView:
        return self.edit(rule.id, lambda _: rule)

    def edit(self, rule_id: str, edit: Callable[[Rule], Rule]) -> RuleView:
        """Changes a rule to what `edit` makes of it; its counters go on. Raises NotFound."""
        with self._lock:
            present = self._present(rule_id)
            rule = edit(present.rule)
            if present.rule == rule:
                return self._view(present)
            self._interfaces.check_names(rule, present.rule.interfaces)
            changed = Record(present.handle, rule, present.created_at, self._clock())
            self._change([present], [changed])
            return self._view(changed)

    def delete(self, rule_id: str) -> None:
        with self._lock:
            self._change([self._present(rule_id)], [])

    def batch(self, adds: Sequence[Rule], deletes: Sequence[str]) -> BatchOutcome:
        """Deletes, then adds, as one change. Raises NotFound, AlreadyExists or InvalidInput with the place."""
        with self._lock:
            _check_distinct([rule.id for rule in adds], "/add")
            present = self._store.by_ids([*{*deletes, *(rule.id for rule in adds)}])
            for index, rule_id in enumerate(deletes):
                if rule_id not in present:
                    pointer = f"/delete/{index}"
                    raise NotFound(
                        f"there is no rule {rule_id!r}",
                        "list the rules with GET /v1/rules; nothing was changed",
                        (Problem(pointer, "no such rule"),),
                    )
            going = set(deletes)
            new = []
            for index, rule in enumerate(adds):
                old = present.get(rule.id)
                if old is None or rule.id in going:
                    new.append(rule)
                elif not old.rule.asks_same_as(rule):
                    raise _exists(rule.id, f"/add/{index}/id")
            self._check_names(adds, "/add")
            first = self._store.next_handle
            records = [self._new_record(rule, first + number) for number, rule in enumerate(new)]
            removed = [present[rule_id] for rule_id in going]
            if removed or records:
                self._change(removed, records)
            ids = tuple(rule.id for rule in adds)
            return BatchOutcome(len(records), len(removed), len(adds) - len(records), ids)

    def replace_all(self, rules: Sequence[Rule], if_match: str | None) -> BatchOutcome:
        """Makes the rule set just this, as one change. Rules that stay as they were keep their counters."""
        with self._lock:
            if if_match is not None and if_match.strip() != "*" and self.etag() not in _etags(if_match):
                raise PreconditionFailed(
                    f"the rule set is {self.etag()}, not {if_match}",
                    "read it again and repeat the change on top of it",
                )
            _check_distinct([rule.id for rule in rules], "/rules")
            self._check_names(rules, "/rules", self._named_interfaces())
            present = {each.rule.id: each for each in self._store.all()}
            removed, written, unchanged = [], [], 0
            handle, now = self._store.next_handle, self._clock()
            for rule in rules:
                old = present.pop(rule.id, None)
                if old is None:
                    written.append(Record(handle, rule, now, now))
                    handle += 1
                elif old.rule.asks_same_as(rule):
                    unchanged += 1
                else:
                    removed.append(old)
                    written.append(Record(old.handle, rule, old.created_at, now))
            deleted = list(present.values())
            if removed or deleted or written:
                self._change([*removed, *deleted], written)
            return BatchOutcome(len(written), len(deleted), unchanged, tuple(rule.id for rule in rules))

    def import_list(
        self, columns: Sequence[PrefixColumns], action: str, priority: int, direction: str
    ) -> ImportOutcome:
        """One rule for each prefix, all as one change: sources at ingress, destinations at egress. Prefixes that
        have a rule of this action and priority already are left as they are."""
        with self._lock:
            first, added, unchanged = self._store.next_handle, 0, 0
            arriving, blocks = [], []
            for each in columns:
                block = Block(
                    first + added,
                    0,
                    secrets.token_hex(4),
                    each.version,
                    action,
                    priority,
                    direction,
                    self._clock(),
                )
                fresh, known = self._fresh(each, block)
                unchanged += known
                if len(fresh):
                    block = replace(block, count=len(fresh))
                    blocks.append((block, fresh))
                    arriving.append(_entries(block, fresh, np.arange(len(fresh))))
                    added += len(fresh)
            if arriving:
                self._import(self._ruleset.plan_import(arriving), blocks)
            return ImportOutcome(added, unchanged)

    def _fresh(self, columns: PrefixColumns, block: Block) -> tuple[PrefixColumns, int]:
        """The distinct prefixes, sorted, that have no rule of the block's rank yet; and how many were left out."""
        keys, at = np.unique(
            encode_many(block.version, _scope(block), columns.lengths, columns.addresses), return_index=True
        )
        tables = self._ruleset.addresses
        known = tables.find(block.version, keys)
        same = known.ranks == block.rank
        others = known.only(~same)
        held = [any(entry.rank == block.rank for entry in tables.entries(key)) for key, _ in decoded(others)]
        left_out = np.concatenate((known.keys[same], others.keys[np.array(held, np.bool_)]))
        at = at[~np.isin(keys, left_out)]
        fresh = PrefixColumns(columns.version, columns.lengths[at], columns.addresses[at])
        return fresh, len(columns) - len(fresh)

    def _import(self, plan: RulesetPlan, blocks: Sequence[tuple[Block, PrefixColumns]]) -> None:
        def write() -> None:
            for block, columns in blocks:
                self._store.write_block(block, columns.lengths, columns.addresses)

        self._perform(plan, write, set(), [])

    def _block_entries(self, block: Block) -> Entries:
        left = self._store.block_rules(block)
        return _entries(block, PrefixColumns(block.version, left.lengths, left.addresses), left.numbers)

    def _change(self, removed: Sequence[Record], written: Sequence[Record]) -> None:
        plan = self._ruleset.plan(removed, written, self._interfaces.protected())
        kept = {each.handle for each in written}
        deleted = [each.handle for each in removed if each.handle not in kept]
        left_policy = [
            (handle, each.slot)
            for handle, each in self._ruleset.policy_rules.items()
            if handle in kept and plan.policy_rules is not None and handle not in plan.policy_rules
        ]
        self._perform(plan, lambda: self._store.write_rules(deleted, written), set(deleted), left_policy)

    def _perform(
        self,
        plan: RulesetPlan,
        write: Callable[[], None],
        deleted: set[int],
        left_policy: Sequence[tuple[int, int]],
    ) -> None:
        """Store and kernel, both or neither. `left_policy`: handle and slot of rules that the policy loses and the
        address tables get, whose hits must not be lost."""
        self._check_room(plan)
        self._reserve_for(plan)
        is_applied = False
        try:
            with self._store.transaction():
                write()
                hits = self._kernel.policy_hits([slot for _, slot in left_policy])
                gone = self._kernel.apply(plan.change)
                is_applied = True
                self._save_gone(gone, deleted)
                self._store.add_hits(zip((handle for handle, _ in left_policy), hits, strict=True))
        except BaseException as error:
            if is_applied:
                self._kernel.apply(plan.change.inverse())
            if isinstance(error, FirewallError):
                self._note(error)
            raise
        self._ruleset.commit(plan)

    def _note(self, error: FirewallError) -> None:
        self.last_error = str(error)
        if isinstance(error, StoreFailed):
            self._drift.note_store(error.detail)

    def _save_gone(self, gone: dict[int, Hits], deleted: set[int]) -> None:
        self._store.add_hits((handle, hits) for handle, hits in gone.items() if handle not in deleted)

    def _check_room(self, plan: RulesetPlan) -> None:
        """Raises TableFull before anything is written. Planning raised it where the policy is full."""
        before = self._ruleset.addresses.sizes()
        for version, wanted in self._ruleset.addresses.sizes(plan.addresses).items():
            if wanted > self._limits.addresses and wanted > before[version]:
                limit = self._limits.addresses
                raise table_full(f"address{version}", limit, wanted, "bpf.max_addresses", "addresses")

    def _reserve_for(self, plan: RulesetPlan) -> None:
        """Room for the old and the new entries at once: both are there for a moment."""
        new = plan.addresses.new_keys()
        sizes = {version: size + new[version] for version, size in self._ruleset.addresses.sizes().items()}
        self._reserve(sizes, plan.policy or self._ruleset.policy)

    def _reserve(self, sizes: dict[int, int], policy: Policy) -> None:
        self._kernel.reserve(sizes, len(policy.vectors), policy.prefix_count)

    def _new_record(self, rule: Rule, handle: int) -> Record:
        now = self._clock()
        return Record(handle, rule, now, now)

    def _named_interfaces(self) -> set[str]:
        """What the rules name that are there, on this host or not: an export of them can always be put back."""
        rules = [each.rule for each in self._ruleset.policy_rules.values()]
        rules += [each.rule for each in self._store.disabled()]
        return {name for rule in rules for name in rule.interfaces}

    def _check_names(self, rules: Sequence[Rule], pointer: str, also: Collection[str] = ()) -> None:
        for index, rule in enumerate(rules):
            if rule.interfaces:
                try:
                    self._interfaces.check_names(rule, also)
                except InvalidInput as error:
                    error.problems = tuple(
                        Problem(f"{pointer}/{index}{each.pointer}", each.detail) for each in error.problems
                    )
                    raise

    def _present(self, rule_id: str) -> Record:
        record = self._store.by_id(rule_id)
        if record is None:
            raise NotFound(f"there is no rule {rule_id!r}", "list the rules with GET /v1/rules")
        return record

    # -- interfaces

    def attach(self, name: str, mode: str, ingress: bool, egress: bool, force: bool = False) -> InterfaceView:
        """Protects an interface, now and after a restart. `force`: puts our XDP program in the place of another
        owner's, once."""
        if not ingress and not egress:
            raise InvalidInput(
                f"neither hook of {name} is asked for",
                "set ingress or egress to true, or DELETE the interface",
                (Problem("/ingress", "ingress and egress cannot both be false"),),
                "no_hook",
            )
        with self._lock:
            link = self._interfaces.link(name)
            request = InterfaceRequest(name, True, mode, ingress, egress)
            before, had = self._interfaces.held(name), self._interfaces.programs(link)
            try:
                with self._store.transaction():
                    self._store.write_interface(request, name)
                    self._apply_interfaces(self._interfaces.protected() | {name: link.ifindex})
                    hold = partial(self._interfaces.hold_strictly, force=force)
                    tell(self._following.hold(hold, link, request))
            except BaseException:
                self._interfaces.put_back(link, had, before)
                if before is None:
                    self._kernel.uncount_interface(link.ifindex)
                    self._apply_interfaces(self._interfaces.protected())
                raise
            self._kernel.forget_displaced()
            self._interfaces.remember(name, request)
            return self.interface(name)

    def detach(self, name: str) -> None:
        with self._lock:
            held = self._interfaces.held(name)
            if held is None and self._interfaces.wanted(name) is None:
                raise NotFound(f"{name!r} is not protected", "GET /v1/interfaces lists those that are",
                               code="interface_not_found")  # fmt: skip
            is_configured = self._interfaces.is_configured(name)
            request = InterfaceRequest(name, False, "auto", True, True) if is_configured else None
            try:
                with self._store.transaction():
                    self._store.write_interface(request, name)
                    if held is not None:
                        self._interfaces.release(held)
                        self._following.write_hits(held)
            except BaseException:
                if held is not None:
                    self._interfaces.hold(held.link, held.request)
                raise
            self._interfaces.remember(name, request)
            if held is not None:
                self._kernel.uncount_interface(held.link.ifindex)
            self._apply_interfaces(self._interfaces.protected())

    def _apply_interfaces(self, protected: dict[str, int]) -> None:
        """Rules that name interfaces mean these."""
        plan = self._ruleset.plan_interfaces(protected)
        if plan is not None:
            self._reserve_for(plan)
            self._kernel.apply(plan.change)
            self._ruleset.commit(plan)

    def reload(self, about: About, manner: Manner, configured: Sequence[Interface]) -> None:
        """What the config says now, without a restart. Raises where the kernel refuses; then all is as before."""
        with self._lock:
            if manner.options != self._options:
                self._apply_options(manner.options)
            self._about, self._drift.heals = about, manner.heals
            self._following.reconfigure(configured)

    def _apply_options(self, options: tuple[int, int]) -> None:
        occupancy, policy = self._ruleset.addresses.occupancy, self._ruleset.policy
        self._kernel.set_options(options)
        try:
            self._kernel.apply(Change((), (), (), occupancy, occupancy, policy, policy))
        except BaseException:
            self._kernel.set_options(self._options)
            raise
        self._options = options

    # -- reads

    def etag(self) -> str:
        return f'"{self._store.identity}-{self._store.revision}"'

    @property
    def revision(self) -> int:
        return self._store.revision

    def new_rule_id(self) -> str:
        """Ids that sort by the time they were made."""
        return f"r-{int(self._clock() * 1000):011x}-{secrets.token_hex(4)}"

    def rule(self, rule_id: str) -> RuleView:
        return self._view(self._present(rule_id))

    def rules(self, query: RuleQuery, offset: int, limit: int) -> tuple[list[RuleView], int]:
        among = None if query.address is None else self._covering(query.address)
        records, total = self._store.page(query, offset, limit, among)
        return self._views(records), total

    def _covering(self, prefix: Prefix) -> list[int]:
        """Handles of rules whose sources or destinations cover a prefix."""
        with self._lock:
            entries = self._ruleset.addresses.covering(prefix.version, prefix.address, prefix.length)
            handles = {entry.handle for entry in entries}
            handles |= {
                each.handle for each in self._ruleset.policy_rules.values() if _covers(each.rule, prefix)
            }
        handles |= {each.handle for each in self._store.disabled() if _covers(each.rule, prefix)}
        return sorted(handles)

    def export(self) -> tuple[Iterator[Rule], str]:
        with self._lock:
            etag = self.etag()
            records = list(self._store.all())
        return (each.rule for each in records), etag

    def count(self) -> int:
        return self._store.count()

    def _view(self, record: Record) -> RuleView:
        return self._views([record])[0]

    def _views(self, records: Sequence[Record]) -> list[RuleView]:
        saved = self._store.hits([each.handle for each in records])
        with self._lock:
            live = [self._live_hits(each) for each in records]
        views = []
        for record, hits in zip(records, live, strict=True):
            hits = hits.plus(saved.get(record.handle, NO_HITS))
            views.append(
                RuleView(
                    record.rule,
                    record.created_at,
                    record.updated_at,
                    hits.packets,
                    hits.bytes,
                    hits.last_hit or None,
                )
            )
        return views

    def _live_hits(self, record: Record) -> Hits:
        if not self._is_started or not record.rule.enabled:
            return NO_HITS
        if is_policy(record):
            compiled = self._ruleset.policy_rules.get(record.handle)
            return NO_HITS if compiled is None else self._kernel.policy_hits([compiled.slot])[0]
        tables = self._ruleset.addresses
        keys = [
            key
            for key in dict.fromkeys(address_keys(record.rule))
            if (winner := tables.winner(key)) and winner.handle == record.handle
        ]
        total = NO_HITS
        for hits in self._kernel.address_hits(keys):
            total = total.plus(hits)
        return total

    def interfaces(self) -> list[InterfaceView]:
        with self._lock:
            return self._interfaces.views()

    def interface(self, name: str) -> InterfaceView:
        for view in self.interfaces():
            if view.name == name:
                return view
        raise NotFound(
            f"{name!r} is not protected",
            "GET /v1/interfaces lists those that are",
            code="interface_not_found",
        )

    def counters(self) -> list[CounterView]:
        """Saved and live, by interface name."""
        with self._lock:
            names = {ifindex: name for name, ifindex in self._interfaces.protected().items()}
            live = self._kernel.interface_hits() if self._is_started else {}
        totals = self._store.interface_totals()
        totals += [InterfaceTotal(names.get(i, f"#{i}"), *each) for i, hits in live.items() for each in hits]
        packets: Counter[tuple[str, int, int, int]] = Counter()
        size: Counter[tuple[str, int, int, int]] = Counter()
        for each in totals:
            packets[each[:4]] += each.packets
            size[each[:4]] += each.bytes
        return [
            CounterView(
                HOOKS[hook],
                name,
                VERDICTS[verdict],
                REASONS[reason],
                count,
                size[name, hook, verdict, reason],
            )
            for (name, hook, verdict, reason), count in sorted(packets.items())
        ]

    def fills(self) -> list[MapView]:
        with self._lock:
            sizes = self._ruleset.addresses.sizes()
            return [MapView(*each) for each in self._kernel.fills(len(self._ruleset.policy_rules), sizes)]

    def not_ready(self) -> list[str]:
        """Why packets may not be judged as asked; empty when all is well."""
        if not self._is_started:
            return ["starting"]
        with self._lock:
            return [*self._interfaces.faults(), *self._drift.details()]

    def status(self) -> StatusView:
        now = self._clock()
        with self._lock:
            drift = tuple(self._drift.details()) if self._is_started else ()
            not_ready = (*self._interfaces.faults(), *drift) if self._is_started else ("starting",)
        return StatusView(
            version=self._about.version,
            ready=not not_ready,
            not_ready=not_ready,
            started_at=self._started_at,
            uptime_s=max(0.0, now - self._started_at),
            kernel=platform.release(),
            bcc=self._kernel.bcc,
            pin_root=self._about.pin_root,
            rules=self._store.count(),
            revision=self._store.revision,
            default_ingress=self._about.default_ingress,
            default_egress=self._about.default_egress,
            interfaces=tuple(self.interfaces()),
            maps=tuple(self.fills()) if self._is_started else (),
            drift=drift,
            drift_detected=dict(self._drift.detected),
            drift_healed=dict(self._drift.healed),
            last_error=self.last_error,
        )


def _scope(block: Block) -> int:
    is_ingress = block.direction == "ingress"
    hook = C["HOOK_INGRESS"] if is_ingress else C["HOOK_EGRESS"]
    return hook << C["SCOPE_HOOK_BIT"] | (C["SIDE_SOURCE"] if is_ingress else C["SIDE_DESTINATION"])


def _entries(block: Block, columns: PrefixColumns, numbers: npt.NDArray[np.int64]) -> Entries:
    """What a block's rules are in the address tables; `columns` as sorted as they were stored."""
    keys = encode_many(block.version, _scope(block), columns.lengths, columns.addresses)
    ranks = np.full(len(keys), block.rank, np.uint32)
    return Entries(block.version, keys, ranks, (block.first_handle + numbers).astype(np.uint32))


def _covers(rule: Rule, prefix: Prefix) -> bool:
    return any(each.covers(prefix) for each in (*rule.sources, *rule.destinations))


def _fresh_view(record: Record) -> RuleView:
    return RuleView(record.rule, record.created_at, record.updated_at, 0, 0, None)


def _exists(rule_id: str, pointer: str = "/id") -> AlreadyExists:
    return AlreadyExists(
        f"there is another rule {rule_id!r}",
        "change it with PUT or PATCH, or choose another id",
        (Problem(pointer, "is the id of another rule"),),
    )


def _check_distinct(ids: Sequence[str], pointer: str) -> None:
    seen: set[str] = set()
    for index, rule_id in enumerate(ids):
        if rule_id in seen:
            problem = Problem(f"{pointer}/{index}/id", f"{rule_id!r} is given twice")
            raise InvalidInput(problem.detail, "give every rule an id of its own", (problem,))
        seen.add(rule_id)


def _etags(header: str) -> set[str]:
    return {each.strip() for each in header.split(",")}
