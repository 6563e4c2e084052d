"""Owns `ebpf-fw rule add`: options and a file become one rule. It checks no rule: the service does."""

import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from cli import output, rule_text
from cli.asking import AllowLockout, Asking, Confirm, DryRun, tell_effect
from cli.choices import Action, Direction
from cli.failure import EXIT_REFUSED, Json, failure
from cli.session import Session


def _many(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, show_default=False)


Values = list[str] | None


def add(
    session: Session,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A rule as JSON, - for standard input; other options change it."),
    ] = None,
    rule_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Made by the service if it is not given.")
    ] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    action: Annotated[Action | None, typer.Option(help="Default: drop.")] = None,
    priority: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="0 to 65535, the lowest wins. Default: 1000.")
    ] = None,
    direction: Annotated[Direction | None, typer.Option(help="Default: ingress.")] = None,
    interface: Annotated[Values, _many("--interface", "NAME", "Name or glob, such as eth*.")] = None,
    family: Annotated[str | None, typer.Option(metavar="FAMILY", help="any, ipv4 or ipv6.")] = None,
    source: Annotated[Values, _many("--source", "ADDRESS", "Address, CIDR or set (@NAME).")] = None,
    destination: Annotated[Values, _many("--destination", "ADDRESS", "Address, CIDR or set (@NAME).")] = None,
    protocol: Annotated[Values, _many("--protocol", "NAME", "Name or number.")] = None,
    source_port: Annotated[
        Values, _many("--source-port", "PORT", "Port or range, such as 8000-8100.")
    ] = None,
    destination_port: Annotated[
        Values, _many("--destination-port", "PORT", "Port or range, such as 8000-8100.")
    ] = None,
    icmp_type: Annotated[Values, _many("--icmp-type", "TYPE", "Type, or type/code.")] = None,
    tcp_flags_set: Annotated[Values, _many("--tcp-flags-set", "FLAG", "TCP flags that are set.")] = None,
    tcp_flags_unset: Annotated[
        Values, _many("--tcp-flags-unset", "FLAG", "TCP flags that are not set.")
    ] = None,
    ttl: Annotated[
        str | None, typer.Option(metavar="TIME", help="Seconds, or a time such as 90s, 1h.")
    ] = None,
    label: Annotated[
        Values, typer.Option(metavar="KEY=VALUE", help="Repeat it for several.", show_default=False)
    ] = None,
    observe: Annotated[
        bool, typer.Option("--observe", help="Count what the rule would decide, and decide nothing.")
    ] = False,
    disabled: Annotated[bool, typer.Option("--disabled", help="Keep the rule, but do not apply it.")] = False,
    confirm: Confirm = None,
    allow_lockout: AllowLockout = False,
    dry_run: DryRun = False,
) -> None:
    """Add one rule. What is not given matches everything.

    Addresses, ports, protocols, types, flags and interfaces can be repeated, or separated by commas.
    Adding the same rule again changes nothing and succeeds.
    """
    given = {
        "id": rule_id,
        "description": description,
        "action": action,
        "priority": priority,
        "direction": direction,
        "interfaces": split(interface),
        "family": family,
        "sources": split(source),
        "destinations": split(destination),
        "protocols": split(protocol),
        "source_ports": split(source_port),
        "destination_ports": split(destination_port),
        "icmp_types": split(icmp_type),
        "tcp_flags": _tcp_flags(tcp_flags_set, tcp_flags_unset),
        "ttl": int(ttl) if ttl is not None and ttl.isdecimal() else ttl,
        "labels": _labels(label),
        "enabled": False if disabled else None,
        "mode": "observe" if observe else None,
    }
    rule = {name: value for name, value in given.items() if value is not None}
    if file is None and not rule:
        raise typer.BadParameter("say what the rule is: options, or --file")
    if file is not None:
        rule = _rule_of_file(file) | rule
    asking = Asking(confirm, allow_lockout, dry_run)
    with session.client() as client:
        response = client.send("POST", "/v1/rules", body=rule, query=asking.query())
    added: Json = orjson.loads(response.content)
    if dry_run:
        tell_effect(added, as_json=session.as_json)
        return
    if response.status_code == 201:
        asking.remind()
    if session.as_json:
        output.json_document(added)
    else:
        done = "added" if response.status_code == 201 else "was already there:"
        output.line(f"{done} {added['id']}: {rule_text.action_text(added)} {rule_text.match_text(added)}")
    for warning in added.get("warnings") or []:
        output.note(rule_text.warning_text(warning))


def _rule_of_file(file: Path) -> Json:
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from None
    try:
        rule = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise failure(EXIT_REFUSED, "invalid_json", "Not JSON", f"{file}: {error}") from None
    if not isinstance(rule, dict) or "rules" in rule:
        hint = "several rules: ebpf-fw import FILE"
        raise failure(EXIT_REFUSED, "not_a_rule", "Not a rule", f"{file} holds no single rule", hint=hint)
    return rule


def split(values: Values) -> Values:
    if not values:
        return None
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _tcp_flags(wanted: Values, unwanted: Values) -> dict[str, list[str]] | None:
    flags = {"set": split(wanted), "unset": split(unwanted)}
    return {name: values for name, values in flags.items() if values} or None


def _labels(values: Values) -> dict[str, str] | None:
    pairs = [value.partition("=") for value in values or []]
    if bad := [key for key, separator, _ in pairs if not separator or not key]:
        raise typer.BadParameter(f"--label {bad[0]}: expected KEY=VALUE")
    return {key: value for key, _, value in pairs} or None
