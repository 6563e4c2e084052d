"""`ebpf-fw serve`: from a config file to a running service, and what goes wrong on the way to an exit status.

0: ended by a signal. 1: could not listen or start. 2: the config is wrong.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import structlog

from api import log, reach, server
from api.access import group_number
from api.listeners import listening, name_of
from api.reload import Configuration
from api.slow_start import SlowStart
from api.wiring import build
from firewall.errors import FirewallError
from firewall.instance import only_instance
from firewall.settings import DEFAULT_PATH, load
from firewall.spare_memory import keep_nothing_large

EXIT_FAILED, EXIT_CONFIG = 1, 2


def serve(config: Path, start: SlowStart | None = None) -> None:
    """Runs the service until it is told to stop. `start`: asks systemd for time already. Raises SystemExit with the
    status unless that is 0."""
    log.configure()
    try:
        with SlowStart() if start is None else nullcontext(start) as asking:
            status = _serve(Configuration(config, load(config)), asking)
    except FirewallError as error:
        level = "<3>" if log.stderr_is_the_journal() else ""
        print(f"{level}ebpf-fw: {error.detail}", file=sys.stderr)  # noqa: T201
        if error.hint:
            print(f"{level}hint: {error.hint}", file=sys.stderr)  # noqa: T201
        raise SystemExit(
            EXIT_CONFIG if error.code in ("invalid_config", "invalid_certificate") else EXIT_FAILED
        ) from None
    if status:
        raise SystemExit(status)


def _serve(configuration: Configuration, start: SlowStart) -> int:
    server.remember_signals()
    keep_nothing_large()
    settings = configuration.settings
    log.set_level(settings.service.log_level)
    group = group_number(settings.api.socket_group)
    with listening(settings.api.listen, group) as sockets, only_instance(settings.state.directory):
        addresses = ", ".join(name_of(listener) for listener in sockets)
        structlog.get_logger(__name__).info("listening", addresses=addresses)
        reach.warn_if_closed(sockets)
        return server.run(build(settings), configuration, sockets, start)


if __name__ == "__main__":
    serve(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_PATH)
