"""The service's log: events with fields on stderr, a line each.

Owns the format: text for people, or JSON lines where EBPF_FW_LOG=json. Standard logging (uvicorn's, say)
goes the same way. It must not decide what is logged.
"""

from __future__ import annotations

import logging
import os
import sys

import structlog
from structlog.types import Processor

from firewall.errors import FirewallError, ProgramRejected

FORMAT_VARIABLE = "EBPF_FW_LOG"


def configure() -> None:
    shared: list[Processor] = [
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,  # filters by the level that set_level() gives
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared[1:],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level("info")


def set_level(level: str) -> None:
    """As in the settings: what is less grave is not written. uvicorn's requests are told at "debug" alone."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(number)
    quiet = logging.DEBUG if number == logging.DEBUG else max(number, logging.WARNING)
    logging.getLogger("uvicorn").setLevel(quiet)
    for library in ("asyncio", "pyroute2", "httpx", "httpcore"):
        logging.getLogger(library).setLevel(max(number, logging.WARNING))


def _renderers() -> list[Processor]:
    if os.environ.get(FORMAT_VARIABLE) == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,
            pad_event=0,
            pad_level=False,
            sort_keys=False,
        )
    ]


def fields_of(error: FirewallError) -> dict[str, object]:
    """What a log line tells of an error; a compiler's or verifier's last lines stand below it."""
    fields: dict[str, object] = {"code": error.code, "detail": error.detail}
    if error.hint:
        fields["hint"] = error.hint
    if isinstance(error, ProgramRejected) and error.log:
        fields["exception"] = error.log
    return fields
