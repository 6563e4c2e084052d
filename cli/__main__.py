"""Owns the wiring of `ebpf-fw`: which command is whose, and `serve`, which becomes the service."""

import inspect
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from cli import (
    analysis,
    audit,
    changes,
    check,
    export,
    feeds,
    import_rules,
    interfaces,
    packet_test,
    packets,
    panic,
    rules,
    sets,
    status,
    tokens,
)
from cli.failure import EXIT_FAILED, EXIT_USAGE, failure
from cli.session import DEFAULT_CONFIG, Session, command, shared_options, with_shared_options

app = typer.Typer(
    name="ebpf-fw",
    help="Drop unwanted traffic at the network card, by rules. Talks to the service ebpf-fw.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"ebpf-fw {version('ebpf-fw')}")
        except PackageNotFoundError:
            typer.echo("ebpf-fw (not installed)")
        raise typer.Exit


def root(
    ctx: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    **shared: Any,
) -> None:
    shared_options(ctx, **shared)


app.callback()(with_shared_options(root, [inspect.signature(root).parameters["show_version"]]))


def serve(session: Session) -> None:
    """Run the service in the foreground, as --config says."""
    from api.slow_start import SlowStart
    from firewall.errors import FirewallError

    try:
        with SlowStart() as start:
            from api.__main__ import serve as run  # takes long to load

            run(session.config or DEFAULT_CONFIG, start)
    except FirewallError as error:
        errors = [{"pointer": problem.pointer, "detail": problem.detail} for problem in error.problems]
        code = EXIT_USAGE if error.code == "invalid_config" else EXIT_FAILED
        title = "The service cannot start"
        raise failure(code, error.code, title, error.detail, error.hint or None, errors) from error


command(app, "serve")(serve)
command(app, "status")(status.status)
app.add_typer(rules.app, name="rule")
app.add_typer(sets.app, name="set")
app.add_typer(feeds.app, name="feed")
command(app, "crowdsec")(feeds.crowdsec)
app.add_typer(interfaces.app, name="interface")
app.add_typer(panic.app, name="panic")
app.add_typer(tokens.app, name="token")
command(app, "audit")(audit.audit)
command(app, "import")(import_rules.import_rules)
command(app, "export")(export.export)
command(app, "changes")(changes.changes)
command(app, "confirm")(changes.confirm)
command(app, "rollback")(changes.rollback)
command(app, "analysis")(analysis.analysis)
command(app, "events")(packets.events)
command(app, "capture")(packets.capture)
command(app, "test")(packet_test.judge)
command(app, "check")(check.check)


def main() -> None:
    app(prog_name="ebpf-fw")


if __name__ == "__main__":
    main()
