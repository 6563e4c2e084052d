"""Counters of rules that count from 0 again.

Owns the baseline that is subtracted: what a rule had counted in all when it was reset. Nothing is written into the
maps, so a packet that is counted meanwhile is counted before the reset or after it, never lost.
"""

from __future__ import annotations

from firewall.advice import Advice
from firewall.commit import Commits
from firewall.hits import Reset
from firewall.view import RuleView


class Resets(Commits, Advice):
    """May be called from any thread."""

    def reset_counters(self, rule_id: str) -> RuleView:
        """Raises NotFound."""
        with self._changing_alone():
            record = self._present(rule_id)
            self._summed = None
            (total,) = self._totals([record])
            reset = Reset(total.packets, total.bytes, self._clock())
            with self._store.transaction():
                self._store.write_resets([(record.handle, reset)])
                before = {"packets": total.packets, "bytes": total.bytes}
                self._audit("rule.reset-counters", rule_id, before)
            self._resets[record.handle] = reset
            return self._warned(self._view(record), record)

    def _check_resets(self) -> None:
        """At the start: where the maps were lost with what they had counted, rules have counted less than was to be
        subtracted. What they count from now on shall be seen."""
        self._resets = self._store.resets()
        records = self._store.by_handles(list(self._resets))
        lower = []
        for record, total in zip(records, self._totals(records), strict=True):
            reset = self._resets[record.handle]
            if total.packets < reset.packets:
                lower.append((record.handle, Reset(total.packets, total.bytes, reset.at)))
        if lower:
            with self._store.transaction():
                self._store.write_resets(lower)
            self._resets.update(lower)
