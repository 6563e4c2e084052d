"""What an operator asks: the Rule value, made from the contract's fields and written back to them.

Owns the meaning of the fields together (which protocols have ports, ...). Knows no storage, map or HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, TypeVar

from firewall.address import Prefix, parse_prefix
from firewall.errors import InvalidInput, Problem
from firewall.layout import C
from firewall.match import (
    ICMP_PROTOCOLS,
    PORT_PROTOCOLS,
    TCP,
    UDP,
    IcmpType,
    PortRange,
    TcpFlags,
    format_flags,
    format_protocol,
    parse_duration,
    parse_flags,
    parse_icmp_type,
    parse_ports,
    parse_protocol,
)

Action = Literal["drop", "allow"]
Direction = Literal["ingress", "egress", "both"]
Family = Literal["any", "ipv4", "ipv6"]
RuleMode = Literal["enforce", "observe"]

DEFAULT_PRIORITY = 1000
PRIORITY_MAX = 65535
VERSIONS: dict[str, tuple[int, ...]] = {"any": (4, 6), "ipv4": (4,), "ipv6": (6,)}
ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
SET_MARK = "@"  # before the name of a set, among addresses
T = TypeVar("T")
_INTERFACE = re.compile(r"[^\s/]{1,64}")


def rank_of(priority: int, action: str) -> int:
    return C["RANK_FIRST"] + priority * 2 + C["RANK_ALLOW"] * (action == "allow")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Rule:
    """A rule that cannot be invalid. Empty tuples mean any. Times are seconds since 1970, UTC."""

    id: str
    description: str = ""
    enabled: bool = True
    action: Action = "drop"
    priority: int = DEFAULT_PRIORITY
    direction: Direction = "ingress"
    interfaces: tuple[str, ...] = ()
    family: Family = "any"
    sources: tuple[Prefix, ...] = ()
    destinations: tuple[Prefix, ...] = ()
    protocols: tuple[int, ...] = ()
    source_ports: tuple[PortRange, ...] = ()
    destination_ports: tuple[PortRange, ...] = ()
    icmp_types: tuple[IcmpType, ...] = ()
    tcp_flags: TcpFlags | None = None
    labels: tuple[tuple[str, str], ...] = ()
    ttl_s: int | None = None
    expires_at: float | None = None
    mode: RuleMode = "enforce"
    source_sets: tuple[str, ...] = ()
    destination_sets: tuple[str, ...] = ()

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets that stand among its addresses, as often as they do."""
        return self.source_sets + self.destination_sets

    @property
    def asks_sources(self) -> bool:
        return bool(self.sources or self.source_sets)

    @property
    def asks_destinations(self) -> bool:
        return bool(self.destinations or self.destination_sets)

    @property
    def observes(self) -> bool:
        """It counts the packets that it would decide, and decides none."""
        return self.mode == "observe"

    @property
    def rank(self) -> int:
        """Winning order as one number, the smallest wins (bpf/layout.h, RANK_FIRST)."""
        return rank_of(self.priority, self.action)

    @property
    def hooks(self) -> tuple[int, ...]:
        """Numbers of enum hook in bpf/layout.h."""
        return {"ingress": (0,), "egress": (1,), "both": (0, 1)}[self.direction]

    @property
    def is_addresses_only(self) -> bool:
        """Whether sources or destinations (not both) are all that it asks: such rules live in the address tables.
        Those that observe do not: there, one rule stands for a prefix."""
        return (
            self.asks_sources != self.asks_destinations
            and not self.interfaces
            and not self.protocols
            and not self.source_ports
            and not self.destination_ports
            and not self.icmp_types
            and self.tcp_flags is None
            and not self.observes
        )

    def effective_protocols(self) -> frozenset[int] | None:
        """Protocols that can match, None for any: the fields that imply one narrow an empty list."""
        if self.protocols:
            return frozenset(self.protocols)
        if self.tcp_flags is not None:
            return frozenset((TCP,))
        if self.source_ports or self.destination_ports:
            return frozenset((TCP, UDP))
        return ICMP_PROTOCOLS if self.icmp_types else None

    def asks_same_as(self, other: Rule) -> bool:
        """Whether a client that sends either meant the other: the same ttl, or the same moment of expiry."""
        one, two = replace(self, ttl_s=None, expires_at=None), replace(other, ttl_s=None, expires_at=None)
        same_ttl = self.ttl_s is not None and self.ttl_s == other.ttl_s
        return one == two and (same_ttl or self.expires_at == other.expires_at)

    def fields(self) -> dict[str, object]:
        """The contract's writable fields and expires_at, in canonical text."""
        flags = self.tcp_flags
        return {
            "id": self.id,
            "description": self.description,
            "enabled": self.enabled,
            "mode": self.mode,
            "action": self.action,
            "priority": self.priority,
            "direction": self.direction,
            "interfaces": list(self.interfaces),
            "family": self.family,
            "sources": _addresses_text(self.sources, self.source_sets),
            "destinations": _addresses_text(self.destinations, self.destination_sets),
            "protocols": [format_protocol(number) for number in self.protocols],
            "source_ports": [str(ports) for ports in self.source_ports],
            "destination_ports": [str(ports) for ports in self.destination_ports],
            "icmp_types": [str(icmp) for icmp in self.icmp_types],
            "tcp_flags": flags and {"set": format_flags(flags.set), "unset": format_flags(flags.unset)},
            "expires_at": None if self.expires_at is None else format_time(self.expires_at),
            "labels": dict(self.labels),
        }


def _addresses_text(prefixes: Sequence[Prefix], sets: Sequence[str]) -> list[str]:
    return [*map(str, prefixes), *(SET_MARK + name for name in sets)]


def format_time(seconds: float) -> str:
    """RFC 3339, UTC."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds").replace(
        "+00:00", "Z"
    )


def parse_time(text: object) -> float:
    """RFC 3339 with a zone, to the millisecond as format_time() writes it. Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError("must be an RFC 3339 time such as 2030-01-01T00:00:00Z")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an RFC 3339 time such as 2030-01-01T00:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; write it as in 2030-01-01T00:00:00Z")
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{text!r} is not an RFC 3339 time within the years 1 to 9999 of UTC") from None
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000).timestamp()


class _Reader:
    """Reads fields one by one and collects every problem, each with its JSON pointer."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields
        self.problems: list[Problem] = []

    def fault(self, pointer: str, detail: str) -> None:
        self.problems.append(Problem(pointer, detail))

    def value(self, name: str, parse: Callable[[object], T], default: T) -> T:
        if self._fields.get(name) is None:
            return default
        try:
            return parse(self._fields[name])
        except ValueError as error:
            self.fault(f"/{name}", str(error))
            return default

    def elements(self, name: str, parse: Callable[[object], T]) -> tuple[T, ...]:
        given = self._fields.get(name)
        if given is None:
            return ()
        if isinstance(given, (str, int)):
            given = [given]
        if not isinstance(given, (list, tuple)):
            self.fault(f"/{name}", "must be a list")
            return ()
        parsed: dict[T, None] = {}
        for index, element in enumerate(given):
            try:
                parsed[parse(element)] = None
            except ValueError as error:
                self.fault(f"/{name}/{index}", str(error))
        return tuple(parsed)


def _text(most: int) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError("must be text")
        if len(value) > most:
            raise ValueError(f"is {len(value)} characters long; at most {most} are kept")
        return value

    return parse


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _choice(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
        return str(value)

    return parse


def _priority(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= PRIORITY_MAX:
        raise ValueError(f"{value!r} is not an integer from 0 to {PRIORITY_MAX}")
    return value


class _SetName(str):
    """Of a set, among addresses."""

    __slots__ = ()


def _address(value: object) -> Prefix | _SetName:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not an IPv4 or IPv6 address or CIDR")
    if not value.startswith(SET_MARK):
        return parse_prefix(value)
    if not ID.fullmatch(value, len(SET_MARK)):
        raise ValueError(f"{value!r} is not the name of a set: @ and 1 to 64 of A-Z a-z 0-9 . _ : -")
    return _SetName(value.removeprefix(SET_MARK))


def _prefixes(found: Sequence[Prefix | _SetName]) -> tuple[Prefix, ...]:
    return tuple(each for each in found if isinstance(each, Prefix))


def _set_names(found: Sequence[Prefix | _SetName]) -> tuple[str, ...]:
    return tuple(str(each) for each in found if not isinstance(each, Prefix))


def _interface(value: object) -> str:
    if not isinstance(value, str) or not _INTERFACE.fullmatch(value):
        raise ValueError(f'{value!r} is not an interface name or glob such as "eth0" or "eth*"')
    return value


def parse_id(value: object) -> str:
    if not isinstance(value, str) or not ID.fullmatch(value):
        raise ValueError("must be 1 to 64 of the characters A-Z a-z 0-9 . _ : -")
    return value


def _labels(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or not all(
        isinstance(part, str) for pair in value.items() for part in pair
    ):
        raise ValueError("must be an object of text to text")
    if len(value) > 64 or any(len(key) > 64 or len(text) > 256 for key, text in value.items()):
        raise ValueError("may hold 64 labels of up to 64 characters, with values of up to 256")
    return tuple(sorted(value.items()))


def _tcp_flags(value: object) -> TcpFlags:
    if not isinstance(value, Mapping) or set(value) - {"set", "unset"}:
        raise ValueError('must be an object with "set" and "unset", lists of flags')
    bits = []
    for key in ("set", "unset"):
        names = value.get(key)
        names = [] if names is None else [names] if isinstance(names, str) else names
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ValueError(f'"{key}" must be a list of flags')
        bits.append(parse_flags(list(names)))
    if bits[0] & bits[1]:
        both = ", ".join(format_flags(bits[0] & bits[1]))
        raise ValueError(f"{both} cannot be set and unset at once")
    return TcpFlags(*bits)


def _check_together(read: _Reader, rule: Rule) -> None:
    """Fields that no packet can satisfy at once, or that need a protocol which the rule excludes."""
    protocols = frozenset(rule.protocols)
    for name, needed, names in (
        ("source_ports", PORT_PROTOCOLS, "tcp, udp, udplite, sctp or dccp"),
        ("destination_ports", PORT_PROTOCOLS, "tcp, udp, udplite, sctp or dccp"),
        ("icmp_types", ICMP_PROTOCOLS, "icmp or icmpv6"),
        ("tcp_flags", frozenset((TCP,)), "tcp"),
    ):
        if getattr(rule, name) and protocols and not protocols & needed:
            read.fault(f"/{name}", f"needs {names} among protocols")
    if rule.icmp_types and (rule.source_ports or rule.destination_ports or rule.tcp_flags):
        read.fault("/icmp_types", "no packet has an ICMP type and ports or TCP flags; use two rules")


WRITABLE = frozenset(Rule("any").fields()) | {"ttl"}
READ_ONLY = frozenset(("created_at", "updated_at", "stats", "warnings"))


def rule_from_fields(fields: Mapping[str, object], rule_id: str, now: float) -> Rule:
    """The rule that the contract's JSON fields ask for, under `rule_id` (the fields' own id is not read).

    `now` (seconds since 1970) turns a ttl into the moment of expiry. Read-only fields are accepted, so that
    what was read can be sent back, and have no effect. A moment of expiry in the past is no fault: an old export
    can be restored, and the rule expires at once. Raises InvalidInput with a problem for each fault.
    """
    read = _Reader(fields)
    for name in fields:
        if name not in WRITABLE and name not in READ_ONLY:
            read.fault(f"/{name.replace('~', '~0').replace('/', '~1')}", "unknown field")
    ttl_s = read.value("ttl", parse_duration, None)
    expires_at = read.value("expires_at", parse_time, None)
    if ttl_s is not None:
        expires_at = round(now + ttl_s, 3)
    flags = read.value("tcp_flags", _tcp_flags, None)
    rule = Rule(
        id=rule_id,
        description=read.value("description", _text(1024), ""),
        enabled=read.value("enabled", _boolean, True),
        action=read.value("action", _choice("drop", "allow"), "drop"),  # type: ignore[arg-type]
        priority=read.value("priority", _priority, DEFAULT_PRIORITY),
        direction=read.value("direction", _choice("ingress", "egress", "both"), "ingress"),  # type: ignore[arg-type]
        interfaces=read.elements("interfaces", _interface),
        family=read.value("family", _choice("any", "ipv4", "ipv6"), "any"),  # type: ignore[arg-type]
        sources=_prefixes(sources := read.elements("sources", _address)),
        destinations=_prefixes(destinations := read.elements("destinations", _address)),
        source_sets=_set_names(sources),
        destination_sets=_set_names(destinations),
        protocols=read.elements("protocols", parse_protocol),
        source_ports=read.elements("source_ports", parse_ports),
        destination_ports=read.elements("destination_ports", parse_ports),
        icmp_types=read.elements("icmp_types", parse_icmp_type),
        tcp_flags=flags if flags and (flags.set or flags.unset) else None,
        labels=read.value("labels", _labels, ()),
        ttl_s=ttl_s,
        expires_at=expires_at,
        mode=read.value("mode", _choice("enforce", "observe"), "enforce"),  # type: ignore[arg-type]
    )
    _check_together(read, rule)
    if read.problems:
        raise invalid_rule(read.problems)
    return rule


HINTS = {
    "unknown field": "the fields of a rule are " + ", ".join(sorted(WRITABLE)),
    "has host bits set": "write the network itself, or a single address without a prefix length",
    "among protocols": 'add the protocol, as in "protocols": ["tcp"], or leave protocols empty',
}


def invalid_rule(problems: list[Problem]) -> InvalidInput:
    """One error for all problems; its detail is the first, its hint belongs to the first that has one."""
    first = f"{problems[0].pointer}: {problems[0].detail}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    hint = next((text for problem in problems for key, text in HINTS.items() if key in problem.detail), "")
    return InvalidInput(first + more, hint or "see docs/rule-language.md", tuple(problems))
