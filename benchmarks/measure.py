"""What a benchmark answers: rows of repeated measurements, and goals with what was measured for them.

Owns the arithmetic over rounds. The best of several rounds is what is compared: on a shared machine
disturbance only ever makes a round slower.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

UNSTABLE_SPREAD = 0.15
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Plan:
    """How much is measured. `rounds` of each thing; `packets` a round."""

    is_quick: bool

    @property
    def rounds(self) -> int:
        return 3 if self.is_quick else 7

    @property
    def packets(self) -> int:
        return 1 << (18 if self.is_quick else 21)

    @property
    def live_rounds(self) -> int:
        return 5 if self.is_quick else 15

    @property
    def live_packets(self) -> int:
        return 1 << (18 if self.is_quick else 19)

    @property
    def policy_sizes(self) -> tuple[int, ...]:
        return (1, 1024, 4096) if self.is_quick else (1, 64, 1024, 4096, 16384)

    @property
    def policy_shapes(self) -> tuple[str, ...]:
        return ("acl",) if self.is_quick else ("acl", "fw", "ipc")

    @property
    def address_changes(self) -> int:
        return 200 if self.is_quick else 2000

    @property
    def policy_changes(self) -> int:
        return 30 if self.is_quick else 300

    @property
    def concurrent_adds(self) -> int:
        """Of each client."""
        return 250 if self.is_quick else 500

    @property
    def set_entries(self) -> int:
        return 200_000 if self.is_quick else 1_000_000

    @property
    def bulk_rounds(self) -> int:
        return 1 if self.is_quick else 3


@dataclass(frozen=True)
class Row:
    """A thing measured in every round. `baseline`: what of it is the harness."""

    question: str
    name: str
    unit: str
    values: Sequence[float]
    better: Better = "lower"
    baseline: float = 0.0
    note: str = ""

    @property
    def best(self) -> float:
        return min(self.values) if self.better == "lower" else max(self.values)

    @property
    def net(self) -> float:
        """The best, less the harness."""
        return self.best - self.baseline

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Between the extremes, as a part of the median."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0

    @property
    def is_unstable(self) -> bool:
        return self.spread > UNSTABLE_SPREAD


@dataclass(frozen=True)
class Goal:
    """`at_most` or at least `limit`. `rests_on`: the rows that it was computed from; where one of them is unstable,
    so is the goal's verdict."""

    name: str
    measured: float
    limit: float
    unit: str
    at_most: bool = True
    rests_on: Sequence[Row] = ()

    @property
    def is_unstable(self) -> bool:
        return any(row.is_unstable for row in self.rests_on)

    @property
    def is_met(self) -> bool:
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


@dataclass
class Answers:
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    verified_instructions: dict[str, int] = field(default_factory=dict)

    def add(self, row: Row) -> Row:
        self.rows.append(row)
        return row

    def extend(self, other: Answers) -> None:
        self.rows += other.rows
        self.goals += other.goals
        self.verified_instructions |= other.verified_instructions


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]
