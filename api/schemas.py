"""The JSON of requests and answers, for the OpenAPI document and for checking the outer shape of bodies.

What a rule's fields mean and which values are right is firewall.rule's; RuleFields only describes them, and
tests hold both together. Answers are built from firewall.view, not from these models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from firewall.match import TTL_MAX_S
from firewall.rule import DEFAULT_PRIORITY, ID, PRIORITY_MAX, Action, Direction, Family, RuleMode
from firewall.settings import FeedFields, Mode, Scope

FlagName = Literal["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"]
Hook = Literal["ingress", "egress"]
Verdict = Literal["pass", "drop"]

Id = Annotated[str, Field(pattern=f"^{ID.pattern}$", description="Name of the rule.", examples=["web-1"])]
Time = Annotated[str, Field(description="RFC 3339, UTC.", examples=["2030-01-01T00:00:00Z"])]
Description = Annotated[str, Field(max_length=1024, description="Free text, no effect.")]
Enabled = Annotated[bool, Field(description="A disabled rule is kept and matches nothing.")]
ModeField = Annotated[
    RuleMode, Field(description="observe: the rule counts what it would decide, and decides nothing.")
]
ActionField = Annotated[Action, Field(description="What happens to a packet when this rule wins.")]
Priority = Annotated[
    int,
    Field(ge=0, le=PRIORITY_MAX, description="The lowest number wins; at equal priority drop beats allow."),
]
DirectionField = Annotated[Direction, Field(description="The hooks at which the rule is in force.")]
FamilyField = Annotated[Family, Field(description="Narrows the rule to one IP version.")]
ExpiresAt = Annotated[
    str | None,
    Field(description="The moment at which the rule goes, RFC 3339.", examples=["2030-01-01T00:00:00Z"]),
]
Labels = Annotated[
    dict[str, str],
    Field(description="Your own keys and values, to find rules by.", examples=[{"team": "web"}]),
]

INTERFACES = "Names or globs of interfaces. Empty: every protected interface."
SOURCES = "IPv4 and IPv6 addresses, CIDR or sets (@name) that the packet comes from. Empty: any."
DESTINATIONS = "IPv4 and IPv6 addresses, CIDR or sets (@name) that the packet goes to. Empty: any."
PROTOCOLS = "Names (tcp, udp, icmp, icmpv6, sctp, gre, esp, ...) or numbers, 0 to 255. Empty: any."
PORTS = "Ports or ranges. Needs tcp, udp, udplite, sctp or dccp among protocols, or none: then tcp and udp."
ICMP_TYPES = "ICMP types, or type/code, of icmp and icmpv6."
TCP_FLAGS = "TCP flags that must be set and that must not be."


class Document(BaseModel):
    """Unknown fields are an error, and so is text where a number belongs."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TcpFlags(Document):
    set: list[FlagName] = Field([], examples=[["syn"]])
    unset: list[FlagName] = Field([], examples=[["ack"]])


class TcpFlagsAsked(Document):
    """As a client writes them: a list of one may be written as the flag alone."""

    set: list[FlagName] | FlagName | None = Field([], examples=[["syn"]])
    unset: list[FlagName] | FlagName | None = Field([], examples=[["ack"]])


class Stats(Document):
    """Packets for which this rule won."""

    packets: int
    bytes: int
    last_hit: Time | None = Field(description="When it last won; null: never.")


class Warned(Document):
    """Why a rule may not do what was meant."""

    code: str = Field(
        description="shadowed, redundant, duplicate, matches_nothing, no_interface, never_drop or expired.",
        examples=["shadowed"],
    )
    detail: str
    rule: str | None = Field(description="Id of the other rule that it has to do with.")


class RuleFields(Document):
    """A rule as a client writes it. Every field is optional, null is the same as absent, an empty match field means
    any, and a list of one element may be written as the element alone. Read-only fields are accepted and ignored, so
    that what was read can be sent back."""

    id: Id | None = Field(None, description="Name of the rule; made by the service if it is absent.")
    description: Description = ""
    enabled: Enabled = True
    mode: ModeField = "enforce"
    action: ActionField = "drop"
    priority: Priority = DEFAULT_PRIORITY
    direction: DirectionField = "ingress"
    interfaces: list[str] | str = Field([], description=INTERFACES, examples=[["eth*"]])
    family: FamilyField = "any"
    sources: list[str] | str = Field([], description=SOURCES, examples=[["203.0.113.0/24", "2001:db8::/32"]])
    destinations: list[str] | str = Field([], description=DESTINATIONS, examples=["198.51.100.7"])
    protocols: list[str | int] | str | int = Field([], description=PROTOCOLS, examples=[["tcp", 47]])
    source_ports: list[str | int] | str | int = Field([], description=PORTS, examples=[["1024-65535"]])
    destination_ports: list[str | int] | str | int = Field(
        [], description=PORTS, examples=[[22, "8000-8100"]]
    )
    icmp_types: list[str | int] | str | int = Field([], description=ICMP_TYPES, examples=[["8", "3/1"]])
    tcp_flags: TcpFlagsAsked | None = Field(None, description=TCP_FLAGS)
    labels: Labels = {}
    ttl: Annotated[int, Field(ge=1, le=TTL_MAX_S)] | str | None = Field(
        None,
        description="How long the rule lives: seconds, or text such as 90s, 1h30m, 7d. Wins over expires_at.",
        examples=["1h"],
    )
    expires_at: ExpiresAt = None
    created_at: Any = Field(None, description="Read-only, ignored.")
    updated_at: Any = Field(None, description="Read-only, ignored.")
    stats: Any = Field(None, description="Read-only, ignored.")
    warnings: Any = Field(None, description="Read-only, ignored.")


class RuleExport(Document):
    """What can be written of a rule, in canonical text."""

    id: Id
    description: Description
    enabled: Enabled
    mode: ModeField
    action: ActionField
    priority: Priority
    direction: DirectionField
    interfaces: list[str] = Field(description=INTERFACES)
    family: FamilyField
    sources: list[str] = Field(description=SOURCES)
    destinations: list[str] = Field(description=DESTINATIONS)
    protocols: list[str] = Field(description=PROTOCOLS)
    source_ports: list[str] = Field(description=PORTS)
    destination_ports: list[str] = Field(description=PORTS)
    icmp_types: list[str] = Field(description=ICMP_TYPES)
    tcp_flags: TcpFlags | None = Field(description=TCP_FLAGS)
    labels: Labels
    expires_at: ExpiresAt


class Rule(RuleExport):
    """A rule as the service answers it."""

    created_at: Time
    updated_at: Time
    stats: Stats


class WarnedRule(Rule):
    """One rule, with what may be wrong with it."""

    warnings: list[Warned]


class WarnedOf(Warned):
    id: Id = Field(description="The rule that it is about.")


class Analysis(Document):
    """In order of creation of the rules; `total` and `total_pages` count all that was found."""

    items: list[WarnedOf]
    total: int
    page: int
    page_size: int
    total_pages: int


class RulePage(Document):
    """`total` and `total_pages` count all rules that the filters let through."""

    items: list[Rule]
    total: int
    page: int
    page_size: int
    total_pages: int


# A rule in a body: any JSON object here; firewall.rule judges the fields, with better messages.
RuleBody = Annotated[dict[str, Any], WithJsonSchema({"$ref": "#/components/schemas/RuleFields"})]
PatchBody = Annotated[dict[str, Any], WithJsonSchema({"$ref": "#/components/schemas/RulePatch"})]


class BatchRequest(Document):
    add: list[RuleBody] = Field([], description="Rules to add. The same rule again changes nothing.")
    delete: list[Id] = Field([], description="Ids of rules to delete.")


class BatchAnswer(Document):
    added: int
    deleted: int
    unchanged: int
    ids: list[str] = Field(description="Ids of the rules in `add`, in their order.")
    warnings: list[WarnedOf] = Field(description="Of the first 1,000 rules that were added, at most 100.")


class RulesetRequest(Document):
    rules: list[RuleBody] = Field(description="All rules that there shall be.")


class Ruleset(Document):
    rules: list[RuleExport]


class RulesetAnswer(Document):
    """`rules`: how many there are now."""

    rules: int
    added: int
    deleted: int
    unchanged: int
    warnings: list[WarnedOf] = Field(description="Of the first 1,000 rules that changed, at most 100.")


class ImportAnswer(Document):
    """`unchanged`: had such a rule already, or stood twice in the list."""

    added: int
    unchanged: int


SetName = Annotated[str, Field(pattern=f"^{ID.pattern}$", examples=["blocked"])]


class SetRequest(Document):
    description: str | None = Field(None, max_length=1024, description="Free text. Absent: as it is.")


class AddressSet(Document):
    """A named list of addresses. Rules name it as `@name` among sources or destinations."""

    name: SetName
    description: str
    source: str = Field(description="Who fills it: api, or what alone may change its entries.")
    entries: int
    rules: list[Id] = Field(description="Rules that name it, at most 100.")
    created_at: Time
    updated_at: Time


class SetPage(Document):
    items: list[AddressSet]
    total: int
    page: int
    page_size: int
    total_pages: int


class EntryFields(Document):
    """An entry as a client writes it. Read-only fields are accepted and ignored."""

    address: str = Field(description="IPv4 or IPv6 address or CIDR.", examples=["203.0.113.0/24"])
    ttl: int | str | None = Field(
        None, description="How long it lives: seconds, or as in 1h. Wins over expires_at."
    )
    expires_at: ExpiresAt = None
    comment: str | None = Field(None, max_length=256)
    created_at: Any = Field(None, description="Read-only, ignored.")
    updated_at: Any = Field(None, description="Read-only, ignored.")
    stats: Any = Field(None, description="Read-only, ignored.")


EntryBody = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"$ref": "#/components/schemas/EntryFields"}]})
]


class EntriesRequest(Document):
    entries: list[EntryBody] = Field(examples=[["203.0.113.7", {"address": "2001:db8::/32", "ttl": "1h"}]])
    ttl: int | str | None = Field(None, description="Of entries that have none of their own.")
    comment: str | None = Field(None, max_length=256, description="Of entries that have none of their own.")


class SetEntry(Document):
    """`stats`: packets that it decided in rules that are addresses alone; null where no such rule names the set."""

    address: str
    comment: str | None
    expires_at: Time | None
    created_at: Time
    updated_at: Time
    stats: Stats | None


class EntryPage(Document):
    items: list[SetEntry]
    total: int
    page: int
    page_size: int
    total_pages: int


class EntriesAnswer(Document):
    """`refreshed`: were there with another time or comment; `unchanged`: were there just so; `missing`: were to be
    deleted and not there."""

    added: int
    removed: int
    refreshed: int
    unchanged: int
    missing: int


class ListProblem(Document):
    pointer: str = Field(description="Which line or element, counted from 1.", examples=["/line/7"])
    detail: str


class ListAnswer(EntriesAnswer):
    """`entries`: of the list, duplicates each time; `bad`: lines that are none, of which `errors` tells the first
    hundred; `host_bits`: entries that were taken as the network around them; `expired`: whose time was over."""

    format: str
    entries: int
    bad: int
    host_bits: int
    expired: int
    errors: list[ListProblem]


class FeedRequest(FeedFields):
    """A feed as a client makes it."""

    name: str = Field(pattern=f"^{ID.pattern}$", description="Of the feed.", examples=["spamhaus"])


class FeedError(Document):
    """`reason`: a stable word; `times`: failures since the last success."""

    reason: str
    detail: str
    at: Time
    times: int


class FeedState(Document):
    """`entries`: of the last good list. `reserved`, `own`: entries of it that overlap private networks and the like, or
    an address of this host, left out unless `reserved` says keep; `never_drop`: that never_drop spares."""

    refreshing: bool
    last_attempt: Time | None
    last_success: Time | None
    last_change: Time | None
    next_refresh: Time | None
    error: FeedError | None
    format: str | None
    entries: int
    bad: int
    host_bits: int
    reserved: int
    own: int
    never_drop: int
    reserved_first: list[str]
    refusals: dict[str, int] = Field(description="By reason, since the feed was made.")


class FeedView(Document):
    """Times of `refresh` and `timeout` are seconds."""

    name: str
    origin: Literal["config", "api"]
    url: str | None
    file: str | None
    set: str
    rules: list[str] = Field(description="That name the set; without one, nothing of the list is dropped.")
    format: str | None
    refresh: int
    timeout: int
    max_bytes: int
    max_shrink: float
    reserved: Literal["leave_out", "keep"]
    strict: bool
    enabled: bool
    state: FeedState


class FeedList(Document):
    items: list[FeedView]


class FeedRefreshed(Document):
    """`changed`: false where the list was the same, as its server says."""

    changed: bool
    added: int
    removed: int
    refreshed: int
    unchanged: int
    feed: FeedView


class FeedRefusal(Document):
    reason: str
    detail: str


class FeedPreview(Document):
    """`first_added`, `first_removed`: the first twenty."""

    taken: bool = Field(description="Whether a refresh would take the list.")
    refusal: FeedRefusal | None
    format: str | None
    added: int
    removed: int
    unchanged: int
    first_added: list[str]
    first_removed: list[str]
    bad: int
    host_bits: int
    reserved: int
    own: int
    never_drop: int
    reserved_first: list[str]
    errors: list[ListProblem]


class CrowdSecView(Document):
    """Where the state is "off", nothing else is told. `told`, `taken_back`: decisions since the service started;
    `skipped`: by reason, decisions that make no entry."""

    state: Literal["off", "connecting", "streaming", "forbidden", "failing"]
    url: str | None = None
    set: str | None = None
    refresh: int | None = None
    error: str | None = None
    error_at: Time | None = None
    failures: int = 0
    last_pull: Time | None = None
    last_full: Time | None = None
    decisions: int = 0
    addresses: int = 0
    told: int = 0
    taken_back: int = 0
    skipped: dict[str, int] = {}


class InterfaceRequest(Document):
    mode: Annotated[Mode, Field(description="auto: native, else generic. offload only when asked for.")] = (
        "auto"
    )
    ingress: bool = True
    egress: bool = True
    force: Annotated[bool, Field(description="Replace another owner's XDP program, this once.")] = False


class HookState(Document):
    hook: Hook
    attached: bool
    mode: str | None = Field(description="native, generic, offload; clsact on egress.")
    program_id: int | None
    program_name: str | None
    error: str | None


class InterfaceState(Document):
    """`mode`, `ingress` and `egress` are what was asked for; `actual_mode` is what the kernel has."""

    name: str
    ifindex: int | None
    present: bool
    mode: Mode
    ingress: bool
    egress: bool
    actual_mode: str | None
    native_unavailable: str | None = Field(description="Why native was not possible.")
    hooks: list[HookState]


class InterfaceList(Document):
    items: list[InterfaceState]
    total: int


class StatusHook(HookState):
    interface: str


class DefaultActions(Document):
    """What happens to a packet that no rule matches."""

    ingress: Action
    egress: Action


class MapFill(Document):
    name: str
    used: int
    capacity: int
    setting: str = Field(description="The key of the config file that makes the map larger; may be empty.")


class PanicRequest(Document):
    on: bool
    ttl: Annotated[int, Field(ge=1, le=TTL_MAX_S)] | str | None = Field(
        None,
        description='When it ends by itself: seconds, or as in "10m". 10 minutes where absent, a day at most.',
    )


class PanicState(Document):
    on: bool
    until: Time | None = Field(description="When it ends by itself.")
    left_s: float
    connections: int = Field(description="How many management connections it keeps.")


class ApiState(Document):
    """How the API is guarded."""

    listen: list[str]
    tls: bool
    tls_expires_at: Time | None = Field(
        description="When the certificate expires, or the first one of its chain."
    )
    client_certificates: bool = Field(description="Whether TLS clients need one.")
    authentication: Literal["auto", "required", "none"]
    credentials_needed: bool = Field(description="Whether a TCP client on a loopback address needs them now.")
    insecure: bool = Field(description="The config says insecure = true.")
    warnings: list[str] = Field(description="What is open that need not be, or expires soon.")


TokenName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", examples=["ci"])]


class TokenRequest(Document):
    scope: Scope = Field(description="read, rules (changes of rules too), admin (everything).")
    name: TokenName | None = Field(None, description="Absent: the service makes one.")
    ttl: int | str | None = Field(None, description="How long it is valid: seconds, or as in 90d.")
    expires_at: str | None = Field(None, description="Until when, RFC 3339.")


class TokenState(Document):
    name: str
    scope: Scope
    created_at: Time
    created_by: str = Field(description="As `actor` in the audit.")
    expires_at: Time | None
    expired: bool
    last_used: Time | None = Field(description="By a request, to the minute. Null: never.")


class NewTokenState(TokenState):
    token: str = Field(description="The token itself. It is kept nowhere: this answer alone has it.")


class TokenList(Document):
    items: list[TokenState]
    total: int


class AuditItem(Document):
    id: int
    time: Time
    kind: Literal["change", "access"]
    actor: str = Field(description="token:NAME, uid:NUMBER, certificate:NAME, anonymous or service.")
    source: str | None = Field(description="address:port, or unix:pid=NUMBER.")
    request_id: str | None
    call: str | None = Field(description="Method and path.")
    reason: str | None = Field(description="What the client gave as X-Reason.")
    action: str = Field(examples=["rule.add"])
    target: str | None = Field(description="Such as the id of a rule; null for many things at once.")
    before: Any = Field(description="What was there, where it can be shown.")
    after: Any = Field(description="What is there now.")
    summary: dict[str, Any] | None = Field(description="Numbers, and a digest of what is too much to show.")


class AuditPage(Document):
    items: list[AuditItem]
    next_before: int | None = Field(description="`before` of the next page; null on the last.")


class Status(Document):
    version: str
    ready: bool
    not_ready: list[str] = Field(description="Why it is not ready.")
    uptime_s: float
    started_at: Time
    kernel: str
    bcc: str | None
    pin_root: str
    rules: int
    revision: int
    default_actions: DefaultActions
    hooks: list[StatusHook]
    maps: list[MapFill]
    drift: list[str] = Field(description="Where the kernel is not as the service left it.")
    last_error: str | None
    never_drop: list[str] = Field(description="What no rule, list or default drops.")
    panic: PanicState
    changes_waiting: int = Field(description="Changes that go unless they are confirmed.")
    sets: int
    set_entries: int = Field(description="Of all sets.")
    feeds_failing: list[str] = Field(description="Feeds whose last list was refused or did not come.")
    crowdsec: str = Field(description="State of the bouncer, off where there is none.")
    api: ApiState


Purpose = Literal["ssh", "api_client", "api_listener"]
ChangeState = Literal["pending", "confirmed", "rolled_back"]


class LockoutState(Document):
    """A connection by which this host is managed, and what would drop it."""

    rule: str | None = Field(description="Id of the rule; null: the default action.")
    connection: str
    purpose: Purpose
    interface: str
    hook: Hook


class Shadow(Document):
    """A rule of the change that can never win: `by`, or several with it, beat it wherever it matches. Null
    is never_drop of the config."""

    rule: str
    by: str | None


class Effect(Document):
    """What a change would do; nothing was changed."""

    dry_run: Literal[True]
    added: int
    removed: int
    changed: int
    unchanged: int
    shadowed: list[Shadow]
    lockouts: list[LockoutState] = Field(description="Why it would be refused without allow_lockout.")
    confirm_within: int | None = Field(description="Seconds that it would wait for its confirmation.")


class Change(Document):
    """A change that was made with confirm_within. The counts are of rules."""

    id: int
    what: str
    state: ChangeState
    reason: str = Field(description="Why it was rolled back; else empty.")
    made_at: Time
    deadline: Time = Field(description="It goes then, unless it is confirmed before.")
    seconds_left: float | None = Field(description="Until the deadline; null for a change that ended.")
    ended_at: Time | None
    added: int
    removed: int
    changed: int


class ChangeList(Document):
    pending: list[Change] = Field(description="Those that wait for their confirmation, the newest first.")
    recent: list[Change] = Field(description="The last that ended, the newest first.")


class ConfirmAnswer(Document):
    confirmed: list[Change]


class RollbackAnswer(Document):
    rolled_back: list[Change]


class PacketFields(Document):
    """A packet in words, or its bytes as `frame`. What is left out: a TCP SYN from and to port 49152, from 192.0.2.1 to
    198.51.100.1 (2001:db8::1 to 2001:db8::2)."""

    hook: Hook = "ingress"
    interface: str | None = Field(
        None, description="Which must be protected. May be left out where there is one."
    )
    source: str | None = None
    destination: str | None = None
    protocol: str | int | None = Field(
        None, description="Name or number. Default: tcp; with icmp_type icmp or icmpv6."
    )
    source_port: int | str | None = None
    destination_port: int | str | None = None
    tcp_flags: list[FlagName] | FlagName | None = Field(None, description="Flags that are set. Default: syn.")
    icmp_type: str | int | None = Field(
        None, description="Type, or type/code. Default: an echo request.", examples=["8", "3/1"]
    )
    fragment: Literal["none", "first", "later"] | None = None
    frame: str | None = Field(
        None, description="The whole frame in hex, in place of all but hook, interface and link."
    )
    link: Literal["ethernet", "ip"] | None = Field(
        None, description="What `frame` starts with. Default: as on the interface."
    )


class Match(Document):
    id: str
    action: Action
    priority: int
    mode: RuleMode


class PacketRead(Document):
    """A packet as the filter read it; null: it has no such field."""

    family: Literal["ipv4", "ipv6"]
    source: str
    destination: str
    protocol: str
    source_port: int | None
    destination_port: int | None
    tcp_flags: list[FlagName] | None
    icmp_type: str | None
    fragment: Literal["none", "first", "later"]
    length: int


class Judgement(Document):
    """`rule`: the one that decided; `also_matched`: the others, in the order in which they would have decided."""

    hook: Hook
    interface: str
    verdict: Verdict
    reason: str
    rule: Match | None
    also_matched: list[Match] = Field(description="At most 100; also_matched_total says how many there are.")
    also_matched_total: int
    consistent: bool = Field(description="Whether the service's rules name the same winner as the maps.")
    packet: PacketRead | None = Field(description="null: not IP, or not readable.")
    notes: list[str] = Field(description="What else there is to know, in words.")


class NumberedJudgement(Judgement):
    number: int = Field(description="Of the packet in the file, from 1.")


class JudgementList(Document):
    items: list[NumberedJudgement]
    total: int
    truncated: bool = Field(description="The file holds more packets than `limit`.")


class Counter(Document):
    hook: Hook
    interface: str
    verdict: Verdict
    reason: str = Field(description="Why, out of a list that only grows.")
    packets: int
    bytes: int


class CounterList(Document):
    items: list[Counter]


class Alive(Document):
    status: Literal["alive"]


class Ready(Document):
    status: Literal["ready"]
    panic: bool = Field(description="Whether panic blocks nearly everything.")


class Fault(Document):
    pointer: str = Field(description="JSON pointer into the body, or ?name for a parameter.")
    detail: str


class ProblemDetails(BaseModel):
    """RFC 9457. Some problems have members of their own besides: table_full has table, capacity, wanted and
    setting; kernel_refused has errno; program_rejected has log; lockout has lockouts."""

    type: str = Field(description="A reference that stays the same for this kind of problem.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="Path of the request.")
    code: str = Field(description="Stable, for programs.", examples=["rule_exists"])
    errors: list[Fault]
    hint: str | None = Field(description="What to do about it.")
