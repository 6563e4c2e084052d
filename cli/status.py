"""Owns `ebpf-fw status`: whether the service filters what it was told to, and how full it is."""

from collections.abc import Iterator
from typing import Any

from cli import output
from cli.failure import Json
from cli.interfaces import hook_row, print_hooks
from cli.session import Session


def status(session: Session) -> None:
    """Show the service's state: hooks, map fill, drift and the last error."""
    with session.client() as client:
        answer = client.get("/v1/status")
    if session.as_json:
        output.json_document(answer)
        return
    output.fields(_summary(answer))
    if answer["hooks"]:
        output.line("")
        print_hooks([hook_row(hook["interface"], hook, []) for hook in answer["hooks"]])
    if answer["maps"]:
        output.line("")
        rows = [(m["name"], m["used"], m["capacity"], _fill(m), m["setting"]) for m in answer["maps"]]
        output.table(("MAP", "USED", "CAPACITY", "FILL", "SETTING"), rows, right=("USED", "CAPACITY", "FILL"))


def duration_text(seconds: float) -> str:
    """The two largest units: `3 d 4 h`, `12 min 5 s`."""
    left = int(seconds)
    parts: list[str] = []
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or name == "s":
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])


def panic_text(answer: Json) -> str:
    if not answer["on"]:
        return "off"
    kept = f"{answer['connections']} management connections go on"
    return f"on until {answer['until']} (in {duration_text(answer['left_s'])}); {kept}"


def _summary(answer: Json) -> Iterator[tuple[str, Any]]:
    reasons = "; ".join(map(str, answer["not_ready"]))
    default = answer["default_actions"]
    yield "ready", "yes" if answer["ready"] else f"no: {reasons}"
    yield "version", f"{answer['version']} (kernel {answer['kernel']}, bcc {answer['bcc']})"
    yield "up", f"{duration_text(answer['uptime_s'])}, since {answer['started_at']}"
    yield "rules", f"{answer['rules']:,} (revision {answer['revision']})"
    if answer.get("sets"):
        yield "sets", f"{answer['sets']:,} with {answer['set_entries']:,} entries"
    yield "default", f"ingress {default['ingress']}, egress {default['egress']}"
    if answer["never_drop"]:
        yield "never drop", ", ".join(answer["never_drop"])
    if answer["panic"]["on"]:
        yield "panic", panic_text(answer["panic"])
    yield "pinned", answer["pin_root"]
    if count := answer.get("changes_waiting"):
        yield "waiting", f"{count} to be confirmed: ebpf-fw changes"
    if failing := answer.get("feeds_failing"):
        yield "feeds", f"not taken: {', '.join(failing)}; the last good lists stay (ebpf-fw feed list)"
    if answer.get("crowdsec", "off") not in ("off", "streaming"):
        yield "crowdsec", f"{answer['crowdsec']}: ebpf-fw crowdsec says why"
    if api := answer.get("api"):
        yield "API", _api_text(api)
        for warning in api["warnings"]:
            yield "warning", warning
    for entry in answer["drift"]:
        yield "drift", _text(entry)
    if answer["last_error"]:
        yield "last error", _text(answer["last_error"])


def _api_text(api: Json) -> str:
    tls = "TLS with client certificates" if api["client_certificates"] else "TLS" if api["tls"] else "no TLS"
    needed = "needed" if api["credentials_needed"] else "not needed on this host"
    return f"{', '.join(api['listen'])}; {tls}; credentials over TCP {needed}"


def _fill(entry: Json) -> str | None:
    if not entry["capacity"] or entry["used"] is None:
        return None
    return f"{100 * entry['used'] / entry['capacity']:.1f} %"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return str(value)
