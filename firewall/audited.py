"""Every change leaves an entry in the audit, in its own transaction, and is told to the log once it is durable.

Owns for whom a change is made, and what is told of it. A change says `_audit(...)` inside its transaction; one that an
operator asked for and that says nothing is entered by its method and path, so that none is missing. A change that was
refused is told to the log alone: nothing of it is in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeVar

import orjson
import structlog

from firewall.audit_entry import ACCESS, CHANGE, SERVICE, AuditEntry, Origin
from firewall.audit_journal import AuditJournal, who
from firewall.audit_log import TRIM_CHUNK, AuditLog
from firewall.errors import FirewallError
from firewall.in_force import InForce
from firewall.rule import format_time
from firewall.store import Record, Store, encode

T = TypeVar("T")
FEW = 20  # rules of a change that stand in its entry; of more there are numbers and a digest
_LOOK_AFTER = 1000  # entries, between looks whether there are too many
ACCESS_KEPT = 10_000  # denied accesses: whoever makes them cannot push changes out

log = structlog.get_logger()


class Audited(InForce):
    """`_origin`: of the change that is under way, None for the service's own."""

    _origin: Origin | None = None
    _is_entered = False
    _entered_since_trim = _LOOK_AFTER

    def __init__(self, store: Store, *others: Any) -> None:
        super().__init__(store, *others)
        store.before_commit = self._enter_what_nobody_entered
        self._journal = AuditJournal()
        store.when_durable = self._journal.add

    @cached_property
    def _audit_log(self) -> AuditLog:
        return AuditLog(self._store)

    def on_behalf_of(self, origin: Origin, call: Callable[[], T]) -> T:
        """Calls a method of this object that changes something."""
        with self._lock:
            self._origin, self._is_entered = origin, False
            try:
                return call()
            except FirewallError as error:
                log.info("refused", code=error.code, detail=error.detail, **who(origin), call=origin.call,
                         request=origin.request_id)  # fmt: skip
                raise
            finally:
                self._origin = None

    # -- inside the transaction of a change

    def _audit(
        self,
        action: str,
        target: str = "",
        before: object = None,
        after: object = None,
        /,
        **summary: object,
    ) -> None:
        """`before` and `after`: what orjson knows; `summary`: numbers and names, where there is too much to show."""
        told = {name: value for name, value in summary.items() if value is not None}
        self._audit_json(action, target, _json(before), _json(after), _json(told or None))

    def _audit_rules(
        self,
        action: str | None,
        removed: Sequence[Record],
        written: Sequence[Record],
        encoded: Sequence[str],
        confirm: int | None = None,
    ) -> None:
        """`encoded`: of each written rule what differs from the defaults, as JSON. `confirm`: it goes unless this
        change is confirmed."""
        if len(removed) == 0 and len(written) == 1 and confirm is None:  # what comes by the thousand
            rule_id = written[0].rule.id
            after = f"[{_rule_json(written[0], encoded[0])}]"
            self._audit_json(action or "rule.add", rule_id, None, after, None)
            return
        old, new = {each.handle for each in removed}, {each.handle for each in written}
        summary: dict[str, object] = {} if confirm is None else {"confirm": confirm}
        before = after_or_none = None
        if len(removed) + len(written) <= FEW:
            before = _array([_rule_json(each, encode(each.rule)) for each in removed])
            after_or_none = _array([_rule_json(*each) for each in zip(written, encoded, strict=True)])
        else:
            summary |= {
                "added": len(new - old),
                "removed": len(old - new),
                "changed": len(old & new),
                "digest": _digest(removed, written, encoded),
            }
        ids = {each.rule.id for each in (*removed, *written)} if len(removed) + len(written) <= 2 else set()
        target = ids.pop() if len(ids) == 1 else ""
        if action is None:
            action = _action_of(old, new)
        self._audit_json(action, target, before, after_or_none, _json(summary or None))

    def _audit_json(
        self, action: str, target: str, before: str | None, after: str | None, summary: str | None
    ) -> None:
        self._is_entered = True
        by = self._origin or SERVICE
        self._enter(AuditEntry(0, self._clock(), CHANGE, by, action, target, before, after, summary))

    def _enter(self, entry: AuditEntry) -> None:
        number = self._audit_log.append(entry)
        self._store.tell_when_durable((number, entry))
        self._entered_since_trim += 1

    def _enter_what_nobody_entered(self) -> None:
        """At the end of a change: of its transaction, or of its part of one."""
        if self._origin is not None and not self._is_entered:
            self._audit("change", self._origin.call)

    # -- how much is kept

    def _trim_audit(self) -> None:
        """Now and then, and not much at once: changes wait meanwhile."""
        if self._entered_since_trim < _LOOK_AFTER:
            return
        is_more = False
        for kind, keep in ((CHANGE, self._limits.audit), (ACCESS, min(ACCESS_KEPT, self._limits.audit))):
            up_to = self._audit_log.excess(kind, keep)
            if up_to is not None:
                with self._store.transaction():
                    is_more |= self._audit_log.trim(kind, up_to) == TRIM_CHUNK
        if not is_more:
            self._entered_since_trim = 0


def _json(value: object) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _rule_json(record: Record, encoded: str) -> str:
    rule = record.rule
    more = f",{encoded[1:-1]}" if encoded != "{}" else ""
    if rule.expires_at is not None:
        more += f',"expires_at":"{format_time(rule.expires_at)}"'
    return f'{{"id":"{rule.id}"{more}}}'


def _array(items: Sequence[str]) -> str | None:
    return f"[{','.join(items)}]" if items else None


def _action_of(old: set[int], new: set[int]) -> str:
    if not old:
        return "rule.add"
    return "rule.change" if new else "rule.delete"


def _digest(removed: Sequence[Record], written: Sequence[Record], encoded: Sequence[str]) -> str:
    """Of a line for each rule: `-ID` for what goes, `+ID FIELDS` for what comes."""
    digest = sha256()
    for each in removed:
        digest.update(f"-{each.rule.id}\n".encode())
    for each, fields in zip(written, encoded, strict=True):
        digest.update(f"+{each.rule.id} {fields}\n".encode())
    return f"sha256:{digest.hexdigest()}"
