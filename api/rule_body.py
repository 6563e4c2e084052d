"""From the JSON of a rule to a Rule: its id, what a merge patch means, where in the body a fault is.

Owns nothing of the fields' meaning (firewall.rule) and stores nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from firewall.errors import InvalidInput, Problem
from firewall.rule import READ_ONLY, Rule, invalid_rule, parse_id, rule_from_fields

EXPIRY = frozenset(("ttl", "expires_at"))


def read_new(fields: Mapping[str, Any], new_id: Callable[[], str], now: float) -> Rule:
    """A rule under its own id, or one from `new_id`. Raises InvalidInput."""
    given = fields.get("id")
    if given is None:
        return rule_from_fields(fields, new_id(), now)
    try:
        rule_id = parse_id(given)
    except ValueError as error:
        raise invalid_rule([Problem("/id", f"{given!r} is no id: it {error}")]) from None
    return rule_from_fields(fields, rule_id, now)


def read_many(
    bodies: Sequence[Mapping[str, Any]], place: str, new_id: Callable[[], str], now: float
) -> list[Rule]:
    """The rules of a list at the pointer `place`. Raises one InvalidInput for the faults of all."""
    rules: list[Rule] = []
    problems: list[Problem] = []
    for index, fields in enumerate(bodies):
        try:
            rules.append(read_new(fields, new_id, now))
        except InvalidInput as error:
            problems += [Problem(f"{place}/{index}{each.pointer}", each.detail) for each in error.problems]
    if problems:
        raise invalid_rule(problems)
    return rules


def read_whole(fields: Mapping[str, Any], rule_id: str, now: float) -> Rule:
    """What replaces the rule `rule_id`. Raises InvalidInput."""
    if fields.get("id") is not None:
        check_same_id(fields["id"], rule_id)
    return rule_from_fields(fields, rule_id, now)


def check_same_id(given: object, rule_id: str) -> None:
    if given != rule_id:
        detail = f"is {given!r}, but the address names {rule_id!r}; an id cannot change"
        raise invalid_rule([Problem("/id", detail)])


def patched(rule: Rule, patch: Mapping[str, Any], now: float) -> Rule:
    """JSON merge patch (RFC 7396) of what can be written; null resets a field to its default.

    A rule lives as long as before unless the patch names ttl or expires_at. Raises InvalidInput.
    """
    if "id" in patch:
        check_same_id(patch["id"], rule.id)
    patch = {name: value for name, value in patch.items() if name not in READ_ONLY}
    fields = {name: value for name, value in rule.fields().items() if name not in EXPIRY}
    # A null stays, where RFC 7396 removes the field: it means the default, and unknown fields are found.
    fields.update({name: merge(fields.get(name), value) for name, value in patch.items()})
    result = rule_from_fields(fields, rule.id, now)
    if EXPIRY & patch.keys():
        return result
    return replace(result, ttl_s=rule.ttl_s, expires_at=rule.expires_at)


def merge(target: object, patch: object) -> Any:
    """MergePatch of RFC 7396, section 2."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged
