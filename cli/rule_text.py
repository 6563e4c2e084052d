"""Owns how a rule of the API reads to a person: one line of what it matches, and its fields."""

from collections.abc import Iterator
from typing import Any

Rule = dict[str, Any]


def match_text(rule: Rule) -> str:
    """What the rule asks of a packet, such as `from 203.0.113.0/24 tcp to port 22, 8000-8100`."""
    return " ".join(_parts(rule)) or "everything"


def action_text(rule: Rule) -> str:
    """What the rule does, such as `drop`, or `observe drop` where it only counts."""
    return f"observe {rule['action']}" if rule.get("mode") == "observe" else str(rule["action"])


def note_text(rule: Rule) -> str | None:
    """What sets the rule apart beside its match: disabled, observing, expiring, described."""
    parts = [] if rule.get("enabled", True) else ["disabled"]
    if rule.get("mode") == "observe":
        parts.append("observes")
    if expires := rule.get("expires_at"):
        parts.append(f"until {expires}")
    if description := rule.get("description"):
        parts.append(str(description))
    return ", ".join(parts) or None


def field_pairs(rule: Rule) -> Iterator[tuple[str, Any]]:
    """Every field that says something, in the API's order; counters as one line each."""
    for name, value in rule.items():
        if name == "stats" and isinstance(value, dict):
            yield from ((key, value[key]) for key in ("packets", "bytes", "last_hit") if key in value)
        elif name == "warnings":
            yield from (("warning", f"{each['code']}: {each['detail']}") for each in value)
        elif name == "tcp_flags" and value:
            yield name, _flags(value)
        elif isinstance(value, dict):
            yield name, ", ".join(f"{key}={item}" for key, item in value.items()) or None
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value)) or "any"
        else:
            yield name, str(value) if name == "priority" else value


def _parts(rule: Rule) -> Iterator[str]:
    if rule.get("family", "any") != "any":
        yield rule["family"]
    if sources := rule.get("sources"):
        yield f"from {_some(sources)}"
    if destinations := rule.get("destinations"):
        yield f"to {_some(destinations)}"
    if protocols := rule.get("protocols"):
        yield _some(protocols)
    if ports := rule.get("source_ports"):
        yield f"from port {_some(ports)}"
    if ports := rule.get("destination_ports"):
        yield f"to port {_some(ports)}"
    if types := rule.get("icmp_types"):
        yield f"type {_some(types)}"
    if flags := rule.get("tcp_flags"):
        yield f"flags {_flags(flags)}"
    if interfaces := rule.get("interfaces"):
        yield f"on {_some(interfaces)}"


def _some(values: list[Any], limit: int = 4) -> str:
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(map(str, values[:limit])) + more


def _flags(flags: dict[str, list[str]]) -> str:
    return " ".join(
        [f"+{name}" for name in flags.get("set") or []] + [f"-{name}" for name in flags.get("unset") or []]
    )


def warning_text(warning: Rule) -> str:
    return f"warning: {warning['code']}: {warning['detail']}"
