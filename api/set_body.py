"""From the JSON of entries to columns: what each asks, and where in the body a fault is.

Owns the fields of an entry. Stores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from firewall.address import parse_prefix
from firewall.address_list import prefix_columns
from firewall.errors import InvalidInput, Problem
from firewall.match import parse_duration
from firewall.rule import format_time, parse_time
from firewall.set_entries import EntryColumns, SetEntry, entry_columns
from firewall.view import EntriesOutcome, EntryView, SetView

MOST_COMMENT = 256
_FIELDS = frozenset(("address", "ttl", "expires_at", "comment"))
_READ_ONLY = frozenset(("created_at", "updated_at", "stats"))
_HINT = (
    'write "203.0.113.7", or {"address": "203.0.113.0/24", "ttl": "1h", "comment": "..."}; '
    "nothing was changed"
)


def read_entries(entries: Sequence[Any], ttl: object, comment: object, now: float) -> list[EntryColumns]:
    """`ttl` and `comment`: of entries that have none of their own. Raises one InvalidInput for the faults of all."""
    problems: list[Problem] = []
    until, text = _life({"ttl": ttl, "comment": comment}, "", now, problems)
    if not problems and until is None and text is None and all(isinstance(each, str) for each in entries):
        try:
            return _plain(entries)
        except (OSError, ValueError):
            pass  # read again, to say where
    found = []
    for index, given in enumerate(entries):
        entry = _entry(given, f"/entries/{index}", now, problems)
        if entry is not None:
            found.append(entry._replace(expires_at=entry.expires_at or until, comment=entry.comment or text))
    if problems:
        raise _invalid(problems)
    return entry_columns(found)


def _invalid(problems: Sequence[Problem]) -> InvalidInput:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InvalidInput(
        f"{problems[0].pointer}: {problems[0].detail}{more}", _HINT, tuple(problems), "invalid_entries"
    )


def read_addresses(addresses: Sequence[str]) -> list[EntryColumns]:
    """Of a query. Raises InvalidInput."""
    found, problems = [], []
    for text in addresses:
        try:
            found.append(SetEntry(parse_prefix(text)))
        except ValueError as error:
            problems.append(Problem("?address", str(error)))
    if problems:
        raise InvalidInput(f"?address: {problems[0].detail}", "", tuple(problems), "invalid_query")
    return entry_columns(found)


def _plain(entries: Sequence[str]) -> list[EntryColumns]:
    six = [each for each in entries if ":" in each]
    four = [each for each in entries if ":" not in each] if six else list(entries)
    return [EntryColumns(prefix_columns(4, four)), EntryColumns(prefix_columns(6, six))]


def _entry(given: object, place: str, now: float, problems: list[Problem]) -> SetEntry | None:
    fields: Mapping[str, Any] = {"address": given} if isinstance(given, str) else given  # type: ignore[assignment]
    if not isinstance(fields, Mapping):
        problems.append(Problem(place, "must be an address or CIDR, or an object with one as address"))
        return None
    for name in fields.keys() - _FIELDS - _READ_ONLY:
        problems.append(Problem(f"{place}/{name.replace('~', '~0').replace('/', '~1')}", "unknown field"))
    before = len(problems)
    until, text = _life(fields, place, now, problems)
    try:
        if not isinstance(fields.get("address"), str):
            raise ValueError(f"{fields.get('address')!r} is not an IPv4 or IPv6 address or CIDR")
        prefix = parse_prefix(fields["address"])
    except ValueError as error:
        problems.append(Problem(place if isinstance(given, str) else f"{place}/address", str(error)))
        return None
    return SetEntry(prefix, until, text) if len(problems) == before else None


def _life(
    fields: Mapping[str, Any], place: str, now: float, problems: list[Problem]
) -> tuple[float | None, str | None]:
    """When it expires, and its comment."""
    until, comment = None, fields.get("comment")
    for name in ("expires_at", "ttl"):  # a ttl wins, as with rules
        given = fields.get(name)
        if given is None:
            continue
        try:
            until = round(now + parse_duration(given), 3) if name == "ttl" else parse_time(given)
        except ValueError as error:
            problems.append(Problem(f"{place}/{name}", str(error)))
    if comment is not None and (not isinstance(comment, str) or len(comment) > MOST_COMMENT):
        problems.append(Problem(f"{place}/comment", f"must be text of at most {MOST_COMMENT} characters"))
        comment = None
    return until, comment or None


# -- answers


def set_json(view: SetView) -> dict[str, Any]:
    return {
        "name": view.name,
        "description": view.description,
        "source": view.source,
        "entries": view.entries,
        "rules": view.rules,
        "created_at": format_time(view.created_at),
        "updated_at": format_time(view.updated_at),
    }


def entry_json(view: EntryView) -> dict[str, Any]:
    stats = None
    if view.packets is not None:
        last_hit = None if view.last_hit is None else format_time(view.last_hit)
        stats = {"packets": view.packets, "bytes": view.bytes, "last_hit": last_hit}
    return {
        "address": str(view.prefix),
        "comment": view.comment,
        "expires_at": None if view.expires_at is None else format_time(view.expires_at),
        "created_at": format_time(view.created_at),
        "updated_at": format_time(view.updated_at),
        "stats": stats,
    }


def outcome_json(outcome: EntriesOutcome) -> dict[str, int]:
    return {
        "added": outcome.added,
        "removed": outcome.removed,
        "refreshed": outcome.refreshed,
        "unchanged": outcome.unchanged,
        "missing": outcome.missing,
    }
