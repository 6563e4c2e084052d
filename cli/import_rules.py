"""Owns `ebpf-fw import`: a rule set or a list of addresses goes to the service, in one change or more."""

import re
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, cast

import orjson
import typer

from cli import address_list, output
from cli.asking import AllowLockout, Asking, Confirm, DryRun, joined, tell_effect
from cli.choices import Action, Direction
from cli.failure import EXIT_REFUSED, Failure, Json, failure
from cli.import_list import send_list
from cli.session import Session

CHUNK = 10_000  # rules in one request: one atomic change each
SHOWN_BAD_LINES = 20


def import_rules(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", allow_dash=True, help="- is standard input.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace every rule, in one atomic change.")
    ] = False,
    if_match: Annotated[
        str | None,
        typer.Option(metavar="ETAG", help="With --replace: only if nothing changed since that export."),
    ] = None,
    action: Annotated[Action, typer.Option(help="Of the rules from an address list.")] = Action.drop,
    priority: Annotated[int, typer.Option(help="Of the rules from an address list.")] = 1000,
    direction: Annotated[
        Direction, typer.Option(help="Of the rules from an address list.")
    ] = Direction.ingress,
    id_prefix: Annotated[
        str | None,
        typer.Option(help="Makes the ids of the rules from an address list: this, and the address."),
    ] = None,
    confirm: Confirm = None,
    allow_lockout: AllowLockout = False,
    dry_run: DryRun = False,
) -> None:
    """Import a rule set (JSON, as export writes it, or a rule a line) or a list of addresses (plain text, one a line).

    Rules are added to those that are there. The same rule again changes nothing. A list of addresses is one atomic
    change, unless --id-prefix or both directions make it rules of their own: then, as rule sets are, it is added
    10,000 rules in one change.
    """
    if if_match is not None and not replace:
        raise typer.BadParameter("--if-match needs --replace")
    if len(id_prefix or "") > address_list.PREFIX_LIMIT:
        raise typer.BadParameter(f"--id-prefix has at most {address_list.PREFIX_LIMIT} characters")
    asking = Asking(confirm, allow_lockout, dry_run)
    content = _read(file)
    rules: Iterable[Json]
    if content.lstrip()[:1] in (b"{", b"["):
        rules = _rules_of_json(file, content)
        count, duplicates = len(rules), 0
    elif not replace and id_prefix is None and direction is not Direction.both:
        answer = send_list(session, str(file), content, action, priority, direction, asking)
        _tell(session, answer, asking)
        return
    else:
        listed = _addresses(file, content, may_be_empty=not replace)
        hooks = 2 if direction is Direction.both else 1
        count, duplicates = hooks * len(listed.addresses), listed.duplicates
        rules = address_list.rules(
            listed.addresses,
            action=action,
            priority=priority,
            direction=direction,
            prefix="import" if id_prefix is None else id_prefix,
        )
    answer = _replace(session, rules, if_match, asking) if replace else _add(session, rules, count, asking)
    _tell(session, answer, asking)
    if duplicates and not session.as_json:
        lines = "1 line of {} names" if duplicates == 1 else f"{duplicates:,} lines of {{}} name"
        output.note(f"{lines.format(file)} an address a second time")


def _tell(session: Session, answer: Json, asking: Asking) -> None:
    if asking.dry_run:
        tell_effect(answer, as_json=session.as_json)
        return
    asking.remind()
    if session.as_json:
        output.json_document(answer)
    else:
        output.line(", ".join(f"{name} {answer[name]:,}" for name in ("added", "deleted", "unchanged")))


def _add(session: Session, rules: Iterable[Json], count: int, asking: Asking) -> Json:
    """Chunk by chunk, so that a million rules are never all in memory as JSON."""
    tried = []
    total: Json = {"added": 0, "deleted": 0, "unchanged": 0}
    done = 0
    left = iter(rules)
    with session.client() as client, output.progress() as progress:
        task = progress.add_task("import", total=count)
        try:
            while chunk := list(islice(left, CHUNK)):
                answer = client.post("/v1/rules/batch", {"add": chunk}, asking.query())
                if asking.dry_run:
                    tried.append(answer)
                else:
                    total = {name: so_far + answer[name] for name, so_far in total.items()}
                done += len(chunk)
                progress.update(task, completed=done)
        except (Failure, KeyboardInterrupt) as error:
            if done and isinstance(error, Failure):
                raise Failure(_after(error.problem, done, count), error.exit_code) from None
            if done:
                output.note(f"stopped: {done:,} of {count:,} rules are in")
            raise
    return joined(tried) if asking.dry_run else total


def _after(problem: Json, done: int, count: int) -> Json:
    """The problem of a later chunk, its pointers counted from the first rule of all."""

    def shifted(pointer: str) -> str:
        return re.sub(r"^/add/(\d+)", lambda found: f"/add/{int(found[1]) + done}", pointer)

    detail = f"{problem.get('detail') or ''} {done:,} of {count:,} rules were added before this.".strip()
    errors = [
        {**error, "pointer": shifted(error.get("pointer") or "")} for error in problem.get("errors") or []
    ]
    return {**problem, "detail": detail, "errors": errors, "rules_done": done}


def _replace(session: Session, rules: Iterable[Json], if_match: str | None, asking: Asking) -> Json:
    headers = {} if if_match is None else {"If-Match": _quoted(if_match)}
    with session.client() as client:
        return client.put("/v1/ruleset", {"rules": list(rules)}, headers, asking.query())


def _quoted(etag: str) -> str:
    """An entity tag has quotes; a shell eats them."""
    return etag if etag == "*" or etag.endswith('"') else f'"{etag}"'


def _read(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from None


def _rules_of_json(file: Path, content: bytes) -> list[Json]:
    try:
        document: Any = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        document = _rules_of_lines(content)
        if document is None:
            raise failure(EXIT_REFUSED, "invalid_json", "Not JSON", f"{file}: {error}") from None
    rules = document.get("rules") if isinstance(document, dict) else document
    if not isinstance(rules, list):
        detail = f'{file}: expected {{"rules": [...]}} or a list of rules'
        raise failure(
            EXIT_REFUSED, "not_a_ruleset", "Not a rule set", detail, hint="one rule: ebpf-fw rule add --file"
        )
    return cast("list[Json]", rules)


def _rules_of_lines(content: bytes) -> list[Any] | None:
    """Of a rule a line; None where that is not what it is."""
    try:
        rules = [orjson.loads(line) for line in content.splitlines() if line.strip()]
    except orjson.JSONDecodeError:
        return None
    return rules if all(isinstance(rule, dict) for rule in rules) else None


def _addresses(file: Path, content: bytes, *, may_be_empty: bool) -> address_list.AddressList:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise failure(
            EXIT_REFUSED, "not_text", "Not text", f"{file} is neither JSON nor UTF-8 text"
        ) from None
    listed = address_list.parse(lines)
    if listed.bad:
        errors = [
            {"pointer": f"line {number}", "detail": text} for number, text in listed.bad[:SHOWN_BAD_LINES]
        ]
        detail = f"{file}: {len(listed.bad):,} bad lines of {len(lines):,}; nothing was sent"
        if len(listed.bad) > SHOWN_BAD_LINES:
            detail += f"; the first {SHOWN_BAD_LINES} are shown"
        raise failure(EXIT_REFUSED, "invalid_list", "Bad address list", detail, errors=errors)
    if not listed.addresses and not may_be_empty:
        detail = f"{file} holds no address: a feed that failed must not delete every rule"
        hint = 'to delete every rule, import {"rules": []} with --replace'
        raise failure(EXIT_REFUSED, "empty_list", "Empty address list", detail, hint=hint)
    return listed
