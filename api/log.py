"""The service's log: events with fields on stderr, a line each.

Owns the format: text for people, or JSON lines where EBPF_FW_LOG=json. The journal knows the time itself, and is told
the level of each line as it takes it (sd-daemon(3)), so that `journalctl -p warning` finds them. Standard logging
(uvicorn's, say) goes the same way. What clients say of themselves stands in lines (X-Reason): no character of it ends
a line, or steers the terminal on which somebody reads them. It must not decide what is logged.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import suppress
from typing import TextIO

import structlog
from structlog.types import EventDict, ExcInfo, Processor

from firewall.errors import FirewallError, ProgramRejected

FORMAT_VARIABLE = "EBPF_FW_LOG"
# Of syslog(3), by the levels of logging, from the gravest.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))


def configure() -> None:
    shared: list[Processor] = [
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_log_level,
    ]
    is_journal = stderr_is_the_journal()
    if not is_journal:
        shared.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,  # filters by the level that set_level() gives
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    form = JournalFormatter if is_journal else structlog.stdlib.ProcessorFormatter
    handler.setFormatter(
        form(
            foreign_pre_chain=shared[1:],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level("info")


class JournalFormatter(structlog.stdlib.ProcessorFormatter):
    """Every line with its level before it, those of a traceback as well."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        # By \n alone, as the journal does.
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


class _Quoted:
    """A text as a literal of Python."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return repr(self._text)


def _harmless(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Texts that are not printable, as quoted literals. (The renderer quotes those with spaces.)"""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            if name == "exception":  # lines, the last with whatever was wrong
                event[name] = _escaped_lines(value)
            else:
                event[name] = _escaped(value) if name == "event" else _Quoted(value)
    return event


def _escaped(text: str) -> str:
    return "".join(
        each if each.isprintable() or each == "\t" else each.encode("unicode_escape").decode()
        for each in text
    )


def _escaped_lines(text: str) -> str:
    return "\n".join(map(_escaped, text.split("\n")))


def _traceback(sio: TextIO, exc_info: ExcInfo) -> None:
    """As structlog's, line by line."""
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    sio.write(_escaped_lines(plain.getvalue()))


def stderr_is_the_journal() -> bool:
    """systemd names the stream that it made for us (systemd.exec(5), JOURNAL_STREAM)."""
    with suppress(OSError):
        stream = os.fstat(sys.stderr.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"
    return False


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
        _harmless,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=_traceback,
            pad_event=0,
            pad_level=False,
            sort_keys=False,
        ),
    ]


def fields_of(error: FirewallError) -> dict[str, object]:
    """What a log line tells of an error; a compiler's or verifier's last lines stand below it."""
    fields: dict[str, object] = {"code": error.code, "detail": error.detail}
    if error.hint:
        fields["hint"] = error.hint
    if isinstance(error, ProgramRejected) and error.log:
        fields["exception"] = error.log
    return fields
