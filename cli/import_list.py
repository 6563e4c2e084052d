"""Owns sending a list of addresses to the service as it is: a rule for each, all in one change or none of it."""

import re
from collections.abc import Iterator

from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

from cli import output
from cli.asking import Asking, joined
from cli.choices import Action, Direction
from cli.failure import EXIT_REFUSED, Failure, Json, failure
from cli.session import Session

CHUNK_BYTES = 1 << 18


def send_list(
    session: Session,
    name: str,
    content: bytes,
    action: Action,
    priority: int,
    direction: Direction,
    asking: Asking,
) -> Json:
    """`direction`: ingress or egress. `name`: of the file, for messages. Where it is only tried: the effect."""
    _check_text(name, content)
    if not _has_addresses(content):
        return joined(()) if asking.dry_run else {"added": 0, "deleted": 0, "unchanged": 0}
    query = {"action": action.value, "priority": priority, "direction": direction.value, **asking.query()}
    sent = 0
    with session.client() as client, _progress() as progress:
        task = progress.add_task("send", total=len(content))

        def parts() -> Iterator[bytes]:
            nonlocal sent
            for at in range(0, len(content), CHUNK_BYTES):
                part = content[at : at + CHUNK_BYTES]
                yield part
                sent += len(part)
                progress.update(task, completed=sent, description="send" if sent < len(content) else "import")

        try:
            answer = client.upload("/v1/rules/import", parts(), len(content), "text/plain", query)
        except Failure as refusal:
            raise Failure(_with_lines(name, refusal.problem), refusal.exit_code) from None
        except KeyboardInterrupt:
            output.note(_stopped(name, sent, len(content)))
            raise
    if asking.dry_run:
        return answer
    return {"added": answer["added"], "deleted": 0, "unchanged": answer["unchanged"]}


def _stopped(name: str, sent: int, size: int) -> str:
    if sent < size:
        return f"stopped: nothing of {name} was imported"
    return f"stopped: {name} was sent whole; the service imports all of it or nothing (ebpf-fw status)"


def _check_text(name: str, content: bytes) -> None:
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError:
        detail = f"{name} is neither JSON nor UTF-8 text"
        raise failure(EXIT_REFUSED, "not_text", "Not text", detail) from None


def _has_addresses(content: bytes) -> bool:
    """Anything but comments."""
    lines = (line.partition(b"#")[0].partition(b";")[0] for line in content.splitlines())
    return any(line.strip() for line in lines)


def _with_lines(name: str, problem: Json) -> Json:
    """Pointers into the list as people say them."""
    if problem.get("code") != "invalid_list":
        return problem
    errors = [
        {**each, "pointer": f"line {each.get('pointer', '').removeprefix('/line/')}"}
        for each in problem.get("errors") or []
    ]
    more = re.search(r"\(and (\d+) more\)$", str(problem.get("detail")))
    count = 1 + int(more[1]) if more else 1
    shown = f", the first {len(errors)} are" if count > len(errors) else ""
    return {
        **problem,
        "detail": f"{name}: {count:,} bad {'lines' if count > 1 else 'line'}{shown}",
        "errors": errors,
    }


def _progress() -> Progress:
    """Of bytes, on stderr, silent where that is no terminal."""
    shown = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return output.progress(*shown)
