"""What is known of feeds from one start of the service to the next: which the API made, and how each went.

Owns the file, written whole or not at all. The lists themselves are in their sets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import orjson
import structlog
from pydantic import ValidationError

from firewall.settings import Feed

log = structlog.get_logger(__name__)

FILE = "feeds.json"


@dataclass(frozen=True)
class FeedState:
    """Times: seconds since 1970. `entries`: of the last good list, without those left out; `fingerprint`: of the
    definition that it was read by; `reserved`, `own`, `never_drop`, `told`: as firewall.screen's, of that list."""

    last_attempt: float | None = None
    last_success: float | None = None
    last_change: float | None = None
    error_reason: str = ""
    error_detail: str = ""
    error_at: float | None = None
    failures: int = 0  # since the last success
    etag: str = ""
    last_modified: str = ""
    fingerprint: str = ""
    format: str = ""
    entries: int = 0
    bad: int = 0
    host_bits: int = 0
    reserved: int = 0
    own: int = 0
    never_drop: int = 0
    told: list[str] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)

    def refused(self, reason: str, detail: str, now: float) -> FeedState:
        return replace(
            self,
            error_reason=reason,
            error_detail=detail,
            error_at=now,
            last_attempt=now,
            failures=self.failures + 1,
            refusals={**self.refusals, reason: self.refusals.get(reason, 0) + 1},
        )

    def went_well(self, now: float, **found: Any) -> FeedState:
        kept = replace(self, error_reason="", error_detail="", error_at=None, failures=0)
        return replace(kept, last_attempt=now, last_success=now, **found)


class FeedStore:
    """Called by one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE

    def load(self) -> tuple[dict[str, Feed], dict[str, FeedState]]:
        """Feeds that the API made, and states. A file that is broken is put aside, and the log says so: feeds are not
        worth a firewall that does not start."""
        try:
            document = orjson.loads(self._path.read_bytes())
            made = {each["name"]: Feed.model_validate(each) for each in document["feeds"]}
            states = {name: _state_of(each) for name, each in document["states"].items()}
            return made, states
        except FileNotFoundError:
            return {}, {}
        except (
            OSError,
            orjson.JSONDecodeError,
            ValidationError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            aside = self._path.with_suffix(".broken")
            with suppress(OSError):
                self._path.replace(aside)
            log.error("the state of feeds is lost", error=str(error), kept_as=str(aside))
            return {}, {}

    def save(self, made: Mapping[str, Feed], states: Mapping[str, FeedState]) -> None:
        """Raises OSError."""
        document = {
            "feeds": [feed.model_dump(mode="json", exclude_none=True) for feed in made.values()],
            "states": {name: asdict(state) for name, state in states.items()},
        }
        temporary = self._path.with_suffix(".new")
        with open(temporary, "wb", opener=_for_us_alone) as file:
            file.write(orjson.dumps(document))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _for_us_alone(path: str, flags: int) -> int:
    """URLs may hold passwords."""
    return os.open(path, flags, 0o600)


def _state_of(document: Mapping[str, Any]) -> FeedState:
    known = {each.name for each in fields(FeedState)}
    return FeedState(**{name: value for name, value in document.items() if name in known})
