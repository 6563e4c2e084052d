"""What the service tells about itself: plain values for the API, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from firewall.address import Prefix
from firewall.packet import Packet
from firewall.rule import Rule


@dataclass(frozen=True, slots=True)
class RuleWarning:
    """Why a rule may not do what was meant; `rule`: id of the other rule that it has to do with."""

    code: str
    detail: str
    rule: str | None = None


@dataclass(frozen=True, slots=True)
class RuleView:
    """A rule with its life and its hits. Times are seconds since 1970, UTC."""

    rule: Rule
    created_at: float
    updated_at: float
    packets: int
    bytes: int
    last_hit: float | None
    warnings: tuple[RuleWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class RuleQuery:
    """Filters of a listing, None where not asked. `label` is a key, or key and value."""

    direction: str | None = None
    action: str | None = None
    enabled: bool | None = None
    label: tuple[str, str | None] | None = None
    address: Prefix | None = None
    unused_for_s: int | None = None


@dataclass(frozen=True, slots=True)
class SetView:
    """A set. `source`: who fills it, "api" where requests do. `entries`: how many; `rules`: ids of those that name it,
    of disabled ones too. Times are seconds since 1970, UTC."""

    name: str
    description: str
    source: str
    entries: int
    rules: tuple[str, ...]
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class EntryView:
    """An entry of a set. `packets`, `bytes`, `last_hit`: of rules that are addresses alone; None where no such rule
    names the set."""

    prefix: Prefix
    expires_at: float | None
    comment: str | None
    created_at: float
    updated_at: float
    packets: int | None
    bytes: int | None
    last_hit: float | None


@dataclass(frozen=True, slots=True)
class EntryQuery:
    """Filters of a set's entries, None where not asked. `address`: entries that cover it or lie in it; `comment`: a
    part of it; `expires`: those that expire, or those that do not."""

    address: Prefix | None = None
    comment: str | None = None
    expires: bool | None = None


@dataclass(frozen=True, slots=True)
class EntriesOutcome:
    """How many entries came, went, were there with another time or comment, were there just so; `missing`: were to go
    and were not there."""

    added: int = 0
    removed: int = 0
    refreshed: int = 0
    unchanged: int = 0
    missing: int = 0


@dataclass(frozen=True, slots=True)
class FoundView:
    """What the analysis says of a rule."""

    id: str
    warning: RuleWarning


@dataclass(frozen=True, slots=True)
class AnalysisView:
    """A page of what was found, and how much there is in all."""

    items: tuple[FoundView, ...]
    total: int


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What a change of many rules did; `ids` are those of the rules that were given, in their order. `warnings`: with
    the id of the rule, the first of them."""

    added: int
    deleted: int
    unchanged: int
    ids: tuple[str, ...]
    warnings: tuple[tuple[str, RuleWarning], ...] = ()


@dataclass(frozen=True, slots=True)
class ImportOutcome:
    """How many addresses got a rule, and how many had one (or stood twice in the list)."""

    added: int
    unchanged: int


@dataclass(frozen=True, slots=True)
class LockoutView:
    """A management connection that a change would drop. `rule`: its id, None for the default action. `connection`: in
    words; `purpose`: ssh, api_client or api_listener."""

    rule: str | None
    connection: str
    purpose: str
    interface: str
    hook: str


@dataclass(frozen=True, slots=True)
class ShadowView:
    """A rule of the change that can never win, and the rule that beats it wherever it matches."""

    rule: str
    by: str


@dataclass(frozen=True, slots=True)
class Effect:
    """What a change would do to the rules: how many."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    unchanged: int = 0
    shadowed: tuple[ShadowView, ...] = ()
    lockouts: tuple[LockoutView, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangeView:
    """A change that waits for its confirmation, or that ended. `state`: pending, confirmed or rolled_back."""

    id: int
    what: str
    state: str
    reason: str
    made_at: float
    deadline: float
    seconds_left: float | None
    ended_at: float | None
    added: int
    removed: int
    changed: int


@dataclass(frozen=True, slots=True)
class HookView:
    """One hook of an interface: "ingress" or "egress"."""

    hook: str
    attached: bool
    mode: str | None = None
    program_id: int | None = None
    program_name: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class InterfaceView:
    """A protected interface: `mode`, `ingress`, `egress` as requested; `actual_mode` as the kernel has it."""

    name: str
    ifindex: int | None
    present: bool
    mode: str
    ingress: bool
    egress: bool
    actual_mode: str | None
    native_unavailable: str | None
    hooks: tuple[HookView, ...]


@dataclass(frozen=True, slots=True)
class CounterView:
    hook: str
    interface: str
    verdict: str
    reason: str
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class MapView:
    """`setting` is the key of the config file that makes the map larger; empty where none does."""

    name: str
    used: int
    capacity: int
    setting: str


@dataclass(frozen=True, slots=True)
class MeasuredView:
    """Rules that ask for metrics of their own; `omitted`: how many more do."""

    rules: tuple[RuleView, ...] = ()
    omitted: int = 0


@dataclass(frozen=True, slots=True)
class PanicView:
    """`until`: seconds since 1970; `connections`: how many it keeps. None and 0 where it is off."""

    on: bool
    until: float | None
    left_s: float
    connections: int


@dataclass(frozen=True, slots=True)
class StatusView:
    version: str
    ready: bool
    not_ready: tuple[str, ...]
    started_at: float
    uptime_s: float
    kernel: str
    bcc: str | None
    pin_root: str
    rules: int
    revision: int
    default_ingress: str
    default_egress: str
    interfaces: tuple[InterfaceView, ...]
    maps: tuple[MapView, ...]
    drift: tuple[str, ...]
    drift_detected: dict[str, int]  # how often, by kind (firewall/drift.py)
    drift_healed: dict[str, int]
    last_error: str | None
    never_drop: tuple[str, ...]
    panic: PanicView
    changes_waiting: int = 0  # for their confirmation
    sets: int = 0
    set_entries: int = 0


@dataclass(frozen=True, slots=True)
class MatchView:
    """A rule that a packet matches."""

    id: str
    action: str
    priority: int
    mode: str


@dataclass(frozen=True, slots=True)
class JudgementView:
    """What the filters would do with a packet. `rule`: the winner, as the maps have it; `also_matched`: the others in
    winning order, the first of `also_matched_total`. `packet`: as it was read, None where it is not IP or could not be
    read. `consistent`: the rules in force name the same winner."""

    hook: str
    interface: str
    verdict: str
    reason: str
    rule: MatchView | None
    also_matched: tuple[MatchView, ...]
    also_matched_total: int
    consistent: bool
    packet: Packet | None
    notes: tuple[str, ...]
