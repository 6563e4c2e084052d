"""Addresses by the million become rules as one change.

Owns which of them are new. Reading the text is firewall.address_list's.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np

from firewall.address_index import NO_CODE, code_columns, decoded, encode_many
from firewall.address_list import PrefixColumns
from firewall.caution import Rehearsed
from firewall.commit import Commits
from firewall.datapath import Entries
from firewall.in_force import block_entries, block_scope
from firewall.ruleset import RulesetPlan
from firewall.set_keys import set_keys
from firewall.store import Block
from firewall.view import Effect, ImportOutcome


class ListImport(Commits):
    """May be called from any thread."""

    def import_list(
        self, columns: Sequence[PrefixColumns], action: str, priority: int, direction: str
    ) -> ImportOutcome:
        """One rule for each prefix, all as one change: sources at ingress, destinations at egress. Prefixes that
        have a rule of this action and priority already are left as they are."""
        with self._changing_alone():
            if self._has_fallen:
                self._take_out_first(set_keys(columns))
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
                    arriving.append(block_entries(block, fresh, np.arange(len(fresh))))
                    added += len(fresh)
            if arriving:
                plan = self._ruleset.plan_import(arriving)
                self._check_room(plan)
                self._consider(plan, (), (), unchanged, imported=added)
                self._import(plan, blocks, added)
            elif self._is_rehearsal:
                raise Rehearsed(Effect(unchanged=unchanged))
            return ImportOutcome(added, unchanged)

    def _fresh(self, columns: PrefixColumns, block: Block) -> tuple[PrefixColumns, int]:
        """The distinct prefixes, sorted, that have no rule of the block's rank yet; and how many were left out."""
        keys, at = np.unique(
            encode_many(block.version, block_scope(block), columns.lengths, columns.addresses),
            return_index=True,
        )
        tables = self._ruleset.addresses
        singles = tables.singles_of(block.version, keys)
        known = Entries(block.version, keys, *code_columns(singles)).only(singles != NO_CODE)
        same = known.ranks == block.rank
        others = known.only(~same)
        held = [any(entry.rank == block.rank for entry in tables.singles(key)) for key, _ in decoded(others)]
        left_out = np.concatenate((known.keys[same], others.keys[np.array(held, np.bool_)]))
        at = at[~np.isin(keys, left_out)]
        fresh = PrefixColumns(columns.version, columns.lengths[at], columns.addresses[at])
        return fresh, len(columns) - len(fresh)

    def _import(self, plan: RulesetPlan, blocks: Sequence[tuple[Block, PrefixColumns]], added: int) -> None:
        is_pending = self._is_unconfirmed

        def write() -> None:
            if is_pending:
                ranges = [(block.first_handle, block.first_handle + block.count) for block, _ in blocks]
                self._begin_pending(added, 0, 0)
                self._undo_log.save_blocks(self._pending_id, ranges)
            digest = sha256()
            for block, columns in blocks:
                self._store.write_block(block, columns.lengths, columns.addresses)
                digest.update(columns.lengths.tobytes() + columns.addresses.tobytes())
            kind = blocks[0][0]
            self._audit(
                "rule.import",
                "",
                None,
                None,
                added=added,
                action=kind.action,
                priority=kind.priority,
                direction=kind.direction,
                ids=[f"import-{block.uid}-*" for block, _ in blocks],
                digest=f"sha256:{digest.hexdigest()}",
                confirm=self._pending_id if is_pending else None,
            )

        self._perform(plan, write, set(), [])
        if is_pending:
            self._await_confirmation()
