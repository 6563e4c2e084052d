"""What a client asks of a change besides the change: to be taken back unless confirmed, to be tried only, to be let
through although it locks somebody out. Plain values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from firewall.datapath import Connection
from firewall.undo_log import PendingChange
from firewall.view import Effect

T = TypeVar("T")
CONFIRM_LEAST_S, CONFIRM_MOST_S = 1, 86_400


@dataclass(frozen=True, slots=True)
class Caution:
    """`what`: the change in a few words. `client`: the connection that the request came by, where it is TCP."""

    what: str
    confirm_within_s: int | None = None
    allow_lockout: bool = False
    dry_run: bool = False
    client: Connection | None = None


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """`value`: what the change answered, None where it was only tried: then `effect` is there. `pending`: it goes
    unless confirmed."""

    value: T | None = None
    effect: Effect | None = None
    pending: PendingChange | None = None


class Rehearsed(Exception):
    def __init__(self, effect: Effect) -> None:
        self.effect = effect
