"""Owns `ebpf-fw events` and `ebpf-fw capture`: what is dropped, for people, programs and Wireshark."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import orjson
import typer

from cli import output
from cli.client import Query
from cli.failure import EXIT_UNREACHABLE, failure
from cli.session import Session

Rule = Annotated[
    str | None, typer.Option("--rule", metavar="ID", help="Decided by this rule.", show_default=False)
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="ADDRESS", help="From or to this address or CIDR.", show_default=False),
]
Interface = Annotated[
    str | None,
    typer.Option(
        "--interface", metavar="NAME", help="A name, or a pattern such as 'eth*'.", show_default=False
    ),
]
Reason = Annotated[
    str | None,
    typer.Option("--reason", metavar="REASON", help="As in docs/drop-reasons.md.", show_default=False),
]
Hook = Annotated[
    str | None, typer.Option("--hook", metavar="HOOK", help="ingress or egress.", show_default=False)
]

COLUMNS = ("TIME", "HOOK", "INTERFACE", "RULE", "REASON", "PROTOCOL", "SOURCE", "DESTINATION", "LENGTH")
_WIDTHS = (27, 7, 12, 20, 10, 8, 28, 28, 6)


def events(
    session: Session,
    rule: Rule = None,
    address: Address = None,
    interface: Interface = None,
    reason: Reason = None,
    hook: Hook = None,
) -> None:
    """Show packets as they are dropped, until Ctrl-C."""
    query: Query = {
        "format": "ndjson", "rule": rule, "address": address, "interface": interface, "reason": reason, "hook": hook,
    }  # fmt: skip
    with session.client() as client, _until_interrupted():
        with client.stream("GET", "/v1/events", query=query, is_endless=True) as response:
            if not session.as_json:
                output.line(_row(COLUMNS))
            for line in response.iter_lines():
                _show(line, session.as_json)
        raise _ended()


def _show(line: str, as_json: bool) -> None:
    text = line if as_json else output.plain(event_text(orjson.loads(line))).plain
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def event_text(event: dict[str, Any]) -> str:
    """A line for people; what is missing has one as well."""
    if "suppressed" in event:
        return f"... {event['suppressed']:,} more were dropped than events may be made of"
    if "lost" in event:
        return f"... {event['lost']:,} events were lost on the way here"
    fields = (
        event["time"], event["hook"], event["interface"], event["rule"] or "-", event["reason"],
        event["protocol"] or "-", _end(event["source"], event["source_port"]),
        _end(event["destination"], event["destination_port"]), event["length"],
    )  # fmt: skip
    return _row(fields) + ("" if event["kind"] == "judged" else f"  {event['kind']}")


def _end(address: str | None, port: int | None) -> str:
    if address is None:
        return "-"
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _row(fields: tuple[object, ...]) -> str:
    padded = (str(each).ljust(width) for each, width in zip(fields, _WIDTHS, strict=True))
    return " ".join(padded).rstrip()


def capture(
    session: Session,
    file: Annotated[
        Path | None,
        typer.Option(
            "-w", "--write", metavar="FILE", help="Default: standard output, for a pipe.", show_default=False
        ),
    ] = None,
    rule: Rule = None,
    address: Address = None,
    interface: Interface = None,
    reason: Reason = None,
    hook: Hook = None,
    limit: Annotated[
        int | None,
        typer.Option("-n", "--limit", min=1, help="End after so many packets.", show_default=False),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="End after so long.", show_default=False)
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every packet that is judged, not only those that are dropped.")
    ] = False,
    snap_length: Annotated[
        int | None,
        typer.Option("--snap-length", min=1, help="Bytes of each packet at most [1514].", show_default=False),
    ] = None,
) -> None:
    """Write dropped packets as pcapng, until Ctrl-C: `ebpf-fw capture | wireshark -k -i -`."""
    if file is None and sys.stdout.isatty():
        raise typer.BadParameter(
            "a capture is no text: name a file with -w, or pipe it to `wireshark -k -i -`"
        )
    query: Query = {
        "rule": rule, "address": address, "interface": interface, "reason": reason, "hook": hook, "limit": limit,
        "seconds": None if seconds is None else str(seconds), "all": "true" if everything else None,
        "snap_length": snap_length,
    }  # fmt: skip
    with session.client() as client, _until_interrupted():
        with (
            client.stream("GET", "/v1/capture", query=query, is_endless=True) as response,
            _target(file) as target,
        ):
            for chunk in response.iter_bytes():
                target.write(chunk)
                target.flush()
        if limit is None and seconds is None:
            raise _ended()


@contextmanager
def _target(file: Path | None) -> Iterator[BinaryIO]:
    if file is None:
        yield sys.stdout.buffer
        return
    try:
        opened = file.open("wb")
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror or error}") from None
    with opened:
        yield opened


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ctrl-C is how a person ends what has no end of its own."""
    with suppress(KeyboardInterrupt):
        yield


def _ended() -> Exception:
    return failure(
        EXIT_UNREACHABLE,
        "service_unreachable",
        "The service ended it",
        "it is stopping, or was stopped",
        hint="give the same command again when it runs",
    )
