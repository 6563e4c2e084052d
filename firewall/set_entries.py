"""Entries of sets by the million, as columns.

Owns the value alone: formats make it, sets keep it, feeds bring it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firewall.address_list import PrefixColumns


@dataclass(frozen=True)
class EntryColumns:
    """Entries of one IP version, a row each. `expires_at`: seconds since 1970, UTC, 0 where an entry stays until it is
    deleted; None where all do. `comments`: None where no entry has one. Prefixes may come more than once: the last one
    counts."""

    prefixes: PrefixColumns
    expires_at: npt.NDArray[np.float64] | None = None
    comments: Sequence[str] | None = None

    @property
    def version(self) -> int:
        return self.prefixes.version

    def __len__(self) -> int:
        return len(self.prefixes)
