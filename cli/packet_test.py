"""Owns `ebpf-fw test`: a packet in words, bytes or a file becomes a question, and its answer is shown."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import output
from cli.choices import Hook
from cli.client import Query
from cli.failure import Json
from cli.rule_add import split
from cli.session import Session

MEDIA_TYPE = "application/vnd.tcpdump.pcap"
_PARTS = 1 << 16


def _text(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, show_default=False)


def judge(
    session: Session,
    hook: Annotated[Hook, typer.Option(help="Where the packet would be met.")] = Hook.ingress,
    interface: Annotated[
        str | None, _text("--interface", "NAME", "May be left out where one is protected.")
    ] = None,
    source: Annotated[str | None, _text("--source", "ADDRESS", "Default: 192.0.2.1 or 2001:db8::1.")] = None,
    destination: Annotated[
        str | None, _text("--destination", "ADDRESS", "Default: 198.51.100.1 or 2001:db8::2.")
    ] = None,
    protocol: Annotated[str | None, _text("--protocol", "NAME", "Name or number. Default: tcp.")] = None,
    source_port: Annotated[str | None, _text("--source-port", "PORT", "Default: 49152.")] = None,
    destination_port: Annotated[str | None, _text("--destination-port", "PORT", "Default: 49152.")] = None,
    tcp_flags: Annotated[
        list[str] | None, _text("--tcp-flags", "FLAG", "Flags that are set. Default: syn.")
    ] = None,
    icmp_type: Annotated[str | None, _text("--icmp-type", "TYPE", "Type, or type/code.")] = None,
    fragment: Annotated[str | None, _text("--fragment", "KIND", "none, first or later.")] = None,
    frame: Annotated[str | None, _text("--frame", "HEX", "All bytes of the packet instead.")] = None,
    link: Annotated[
        str | None,
        _text("--link", "LINK", "What the frame starts with: ethernet or ip. Default: the interface's."),
    ] = None,
    pcap: Annotated[
        Path | None, _text("--pcap", "FILE", "Every packet of a pcap or pcapng file instead, up to 1,000.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=1000, help="Packets of the file at most.")] = None,
) -> None:
    """Say what would become of a packet, and which rules it matches.

    The loaded filter judges it, over the rules in force. Nothing is sent, and no counter moves.
    """
    described = {
        "source": source,
        "destination": destination,
        "protocol": protocol,
        "source_port": source_port,
        "destination_port": destination_port,
        "tcp_flags": split(tcp_flags),
        "icmp_type": icmp_type,
        "fragment": fragment,
        "frame": frame,
        "link": link,
    }
    given = {name: value for name, value in described.items() if value is not None}
    if pcap is not None:
        if given:
            name = next(iter(given)).replace("_", "-")
            raise typer.BadParameter(f"--{name} cannot stand beside --pcap, whose packets say it")
        answer = _ask_file(session, pcap, {"hook": hook.value, "interface": interface, "limit": limit})
    elif limit is not None:
        raise typer.BadParameter("--limit is for --pcap")
    else:
        question = {
            "hook": hook.value,
            **({"interface": interface} if interface is not None else {}),
            **given,
        }
        with session.client() as client:
            answer = client.post("/v1/test", question)
    if session.as_json:
        output.json_document(answer)
    elif pcap is not None:
        _print_list(answer)
    else:
        _print_one(answer)


def _ask_file(session: Session, file: Path, query: Query) -> Json:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror or error}") from None
    parts = (content[at : at + _PARTS] for at in range(0, len(content), _PARTS))
    with session.client() as client:
        return client.upload("/v1/test", parts, len(content), MEDIA_TYPE, query)


def _print_one(answer: Json) -> None:
    output.fields(
        [
            ("verdict", answer["verdict"]),
            ("reason", answer["reason"]),
            ("rule", _rule_text(answer["rule"]) if answer["rule"] else None),
            ("packet", _packet_text(answer)),
        ]
    )
    if answer["also_matched"]:
        rows = [
            (each["id"], each["action"], str(each["priority"]), each["mode"])
            for each in answer["also_matched"]
        ]
        output.line("also matched:")
        output.table(("ID", "ACTION", "PRIO", "MODE"), rows, right=("PRIO",), wrapped=("ID",))
        if (left := answer["also_matched_total"] - len(rows)) > 0:
            output.note(f"and {left:,} more")
    for note in answer["notes"]:
        output.note(note)


def _print_list(answer: Json) -> None:
    rows = [
        (
            str(each["number"]),
            each["verdict"],
            each["reason"],
            each["rule"] and each["rule"]["id"],
            _packet_text(each),
        )
        for each in answer["items"]
    ]
    output.table(
        ("NO", "VERDICT", "REASON", "RULE", "PACKET"), rows, right=("NO",), wrapped=("RULE", "PACKET")
    )
    for note in dict.fromkeys(note for each in answer["items"] for note in each["notes"]):
        output.note(note)
    if answer["truncated"]:
        output.note(f"the file holds more than these {answer['total']:,} packets")


def _rule_text(rule: Json) -> str:
    return f"{rule['id']} ({rule['action']}, priority {rule['priority']})"


def _packet_text(answer: Json) -> str:
    packet = answer["packet"]
    where = f"{answer['hook']} of {answer['interface']}"
    if packet is None:
        return f"{where}, not IP or not readable"
    ends = []
    for side in ("source", "destination"):
        port = packet[f"{side}_port"]
        address = f"[{packet[side]}]" if ":" in packet[side] and port is not None else packet[side]
        ends.append(address if port is None else f"{address}:{port}")
    parts = [packet["protocol"], " > ".join(ends)]
    if packet["tcp_flags"] is not None:
        parts.append("flags " + (",".join(packet["tcp_flags"]) or "none"))
    if packet["icmp_type"] is not None:
        parts.append(f"type {packet['icmp_type']}")
    if packet["fragment"] != "none":
        parts.append(f"{packet['fragment']} fragment")
    return f"{where}, {' '.join(parts)}"
