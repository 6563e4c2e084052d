"""Reading the config file again while the service runs: SIGHUP, `systemctl reload`.

Owns which settings are in force and which of a changed file have to wait for a restart. A file that is broken
changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from api import log as logging
from api.log import fields_of
from api.wiring import about, manner
from firewall.enforcer import Enforcer
from firewall.errors import FirewallError
from firewall.settings import Settings, load

log = structlog.get_logger(__name__)

# What sockets, files and maps were made with when the service started.
_NEED_RESTART = ("api", "state", "bpf")


class Configuration:
    """The file and what is in force of it."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.settings = settings

    def reload(self, enforcer: Enforcer) -> bool:
        """Whether the file is in force, but for the keys that the log names. It goes on as before where not."""
        try:
            wanted = load(self.path)
            waiting = [key for key in _differences(self.settings, wanted) if _section(key) in _NEED_RESTART]
            kept = {name: getattr(self.settings, name) for name in _NEED_RESTART}
            settings = wanted.model_copy(update=kept)
            enforcer.reload(about(settings), manner(settings), settings.interfaces)
        except FirewallError as error:
            log.error("the config was not read again: all goes on as before", **fields_of(error))
            return False
        except Exception:
            log.exception("the config was not read again")
            return False
        changed = _differences(self.settings, settings)
        self.settings = settings
        logging.set_level(settings.service.log_level)
        self._enter(enforcer, changed, waiting)
        log.info("config read again", path=str(self.path), changed=", ".join(changed) or "nothing")
        if waiting:
            hint = "systemctl restart ebpf-fw"
            log.warning("changed keys that need a restart", keys=", ".join(waiting), hint=hint)
        return True

    def _enter(self, enforcer: Enforcer, changed: list[str], waiting: list[str]) -> None:
        """Into the audit, where something changed."""
        if not changed:
            return
        try:
            enforcer.enter("config.reload", str(self.path), changed=changed, waiting=waiting or None)
        except FirewallError as error:
            log.error("the reload is missing in the audit", **fields_of(error))


def _section(key: str) -> str:
    return key.partition(".")[0]


def _differences(one: Settings, other: Settings) -> list[str]:
    """Keys in dotted form."""
    before, after = _keys(one.model_dump()), _keys(other.model_dump())
    return [key for key in before if before[key] != after[key]]


def _keys(dumped: dict[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for section, content in dumped.items():
        if isinstance(content, dict):
            keys |= {f"{section}.{name}": value for name, value in content.items()}
        else:
            keys[section] = content
    return keys
