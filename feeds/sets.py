"""What feeds need of the firewall: sets whose entries they own.

Owns the protocol alone. The service fulfils it over its writer thread (api.feed_sets), tests in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from firewall.address import Prefix
from firewall.address_list import PrefixColumns
from firewall.set_entries import EntryColumns


@dataclass(frozen=True)
class Applied:
    """What a change of a set's entries came to."""

    added: int = 0
    removed: int = 0
    refreshed: int = 0
    unchanged: int = 0


FEED_SOURCE = "feed:"  # and the feed's name
CROWDSEC_SOURCE = "crowdsec"


def is_from_outside(source: str) -> bool:
    return source.startswith(FEED_SOURCE) or source == CROWDSEC_SOURCE


class Sets(Protocol):
    """Every change is durable and in the kernel when it returns. Raises FirewallError. `source`: whose the set is."""

    async def claim(self, name: str, source: str, description: str) -> None:
        """Makes the set, or takes it over where it is nobody's and empty. Raises Conflict."""

    async def release(self, kept: Collection[str]) -> list[str]:
        """Gives sets of feeds and of CrowdSec to whoever wants them, but for the sources `kept`; their names."""

    async def replace(self, name: str, columns: Sequence[EntryColumns], source: str) -> Applied: ...
    async def add(self, name: str, columns: Sequence[EntryColumns], source: str) -> Applied: ...
    async def delete(self, name: str, columns: Sequence[EntryColumns], source: str) -> Applied: ...

    async def size(self, name: str) -> int | None:
        """How many entries it has; None where it is not there."""

    async def prefixes(self, name: str) -> list[PrefixColumns]:
        """What is in it, nothing where it is not there."""

    def never_drop(self) -> Sequence[Prefix]: ...
