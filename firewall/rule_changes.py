"""Changes of rules that an operator asks for: one rule, many as one change, all of them.

Owns what is new, what is the same and what is in the way. Performing is firewall.commit's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from firewall.advice import Advice
from firewall.commit import Commits
from firewall.errors import AlreadyExists, InvalidInput, NotFound, PreconditionFailed, Problem
from firewall.rule import Rule
from firewall.set_reads import SetReads
from firewall.store import Record
from firewall.view import BatchOutcome, RuleView


class RuleChanges(Commits, Advice, SetReads):
    """Every method may be called from any thread."""

    def add(self, rule: Rule) -> tuple[RuleView, bool]:
        """The rule and whether it is new: the same rule again is no change. Raises AlreadyExists."""
        with self._changing():
            present = self._store.by_id(rule.id)
            if present is not None and not self._is_over(present):
                if not present.rule.asks_same_as(rule):
                    raise _exists(rule.id)
                return self._warned(self._view(present), present), False
            self._interfaces.check_names(rule)
            self._check_sets([rule])
            record = self._new_record(rule, self._store.next_handle)
            self._change([present] if present is not None else [], [record])
            return self._warned(_fresh_view(record), record), True

    def replace(self, rule: Rule) -> RuleView:
        return self.edit(rule.id, lambda _: rule)

    def edit(self, rule_id: str, edit: Callable[[Rule], Rule]) -> RuleView:
        """Changes a rule to what `edit` makes of it; its counters go on. Raises NotFound."""
        with self._changing():
            present = self._present(rule_id)
            rule = edit(present.rule)
            if present.rule == rule:
                return self._warned(self._view(present), present)
            self._interfaces.check_names(rule, present.rule.interfaces)
            self._check_sets([rule])
            changed = Record(present.handle, rule, present.created_at, self._clock())
            self._change([present], [changed])
            return self._warned(self._view(changed), changed)

    def promote(self, rule_id: str) -> RuleView:
        """Makes a rule that observes decide. What it has counted stays. Raises NotFound."""
        return self.edit(rule_id, lambda rule: replace(rule, mode="enforce"))

    def delete(self, rule_id: str) -> None:
        with self._changing():
            self._change([self._present(rule_id)], [])

    def batch(self, adds: Sequence[Rule], deletes: Sequence[str]) -> BatchOutcome:
        """Deletes, then adds, as one change. Raises NotFound, AlreadyExists or InvalidInput with the place."""
        with self._changing_alone():
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
            going = {*deletes, *(each.rule.id for each in present.values() if self._is_over(each))}
            new = []
            for index, rule in enumerate(adds):
                old = present.get(rule.id)
                if old is None or rule.id in going:
                    new.append(rule)
                elif not old.rule.asks_same_as(rule):
                    raise _exists(rule.id, f"/add/{index}/id")
            self._check_names(adds, "/add")
            self._check_sets(adds, "/add")
            first = self._store.next_handle
            records = [self._new_record(rule, first + number) for number, rule in enumerate(new)]
            removed = [present[rule_id] for rule_id in going]
            if removed or records or self._is_rehearsal:
                self._change(removed, records, len(adds) - len(records), "rule.batch")
            ids = tuple(rule.id for rule in adds)
            warnings = self._warnings_of_many(records)
            return BatchOutcome(len(records), len(set(deletes)), len(adds) - len(records), ids, warnings)

    def replace_all(self, rules: Sequence[Rule], if_match: str | None) -> BatchOutcome:
        """Makes the rule set just this, as one change. Rules that stay as they were keep their counters."""
        with self._changing_alone():
            if if_match is not None and if_match.strip() != "*" and self.etag() not in _etags(if_match):
                raise PreconditionFailed(
                    f"the rule set is {self.etag()}, not {if_match}",
                    "read it again and repeat the change on top of it",
                )
            _check_distinct([rule.id for rule in rules], "/rules")
            self._check_names(rules, "/rules", self._named_interfaces())
            self._check_sets(rules, "/rules")
            present, deleted = self._present_and_other({rule.id for rule in rules})
            removed, written, unchanged = [], [], 0
            handle, now = self._store.next_handle, self._clock()
            for rule in rules:
                old = present.get(rule.id)
                if old is None:
                    written.append(Record(handle, rule, now, now))
                    handle += 1
                elif self._is_over(old):
                    removed.append(old)
                    written.append(Record(handle, rule, now, now))
                    handle += 1
                elif old.rule.asks_same_as(rule):
                    unchanged += 1
                else:
                    removed.append(old)
                    written.append(Record(old.handle, rule, old.created_at, now))
            if removed or deleted or written or self._is_rehearsal:
                self._change([*removed, *deleted], written, unchanged, "ruleset.replace")
            ids = tuple(rule.id for rule in rules)
            warnings = self._warnings_of_many(written)
            return BatchOutcome(len(written), len(deleted), unchanged, ids, warnings)

    def _present_and_other(self, ids: set[str]) -> tuple[dict[str, Record], list[Record]]:
        """Of all stored rules: those with these ids, and the others. One goes by after the other."""
        present, other = {}, []
        for record in self._store.all():
            if record.rule.id in ids:
                present[record.rule.id] = record
            else:
                other.append(record)
        return present, other

    def _is_over(self, record: Record) -> bool:
        """Its time has come, though it was not swept yet: nobody means it any more."""
        expires_at = record.rule.expires_at
        return expires_at is not None and expires_at <= self._clock()

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
