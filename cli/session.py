"""Owns what all commands share: `--url`, `--json`, `--config`, and how a failure becomes an exit code.

People type these options before the command or after it, so every command and every group takes them, and
the nearest to the command wins.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import output
from cli.client import Client, Endpoint
from cli.failure import Failure

if TYPE_CHECKING:
    from firewall.settings import Settings

DEFAULT_CONFIG = Path("/etc/ebpf-fw/config.toml")
DEFAULT_URL = "127.0.0.1:9378"
URL_VARIABLE = "EBPF_FW_URL"
EXIT_BROKEN_PIPE = 128 + 13  # as a shell shows a death by SIGPIPE

Url = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL", help="http://host:port or unix:/path of the service.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the API's JSON.", show_default=False)]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help=f"Default: {DEFAULT_CONFIG}.", show_default=False),
]


@dataclass(frozen=True)
class Session:
    """What one run of the command line was told."""

    url: str | None = None
    as_json: bool = False
    config: Path | None = None

    def narrowed(self, url: str | None, as_json: bool, config: Path | None) -> "Session":
        """With the options that stood nearer to the command."""
        return Session(url or self.url, as_json or self.as_json, config or self.config)

    def client(self) -> Client:
        try:
            return Client(Endpoint.parse(self.address()))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    def address(self) -> str:
        """`--url`, else EBPF_FW_URL, else the first listen address of the config, else the default."""
        if told := self.url or os.environ.get(URL_VARIABLE):
            return told
        settings = self.settings()
        return settings.api.listen[0] if settings else DEFAULT_URL

    def settings(self) -> "Settings | None":
        """The config file; None if none was named and the default one is not there or not ours to read."""
        from firewall.errors import InvalidInput
        from firewall.settings import load

        path = self.config or DEFAULT_CONFIG
        if self.config is None and not os.access(path, os.R_OK):
            return None
        try:
            return load(path)
        except InvalidInput as error:
            raise typer.BadParameter(str(error)) from None


def shared_options(
    ctx: typer.Context, url: Url = None, as_json: AsJson = False, config: Config = None
) -> None:
    """The callback of every group of commands."""
    ctx.obj = (ctx.obj or Session()).narrowed(url, as_json, config)


def command(
    app: typer.Typer, name: str, **settings: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function `(session, its own options...)` as a command that takes the shared options too."""

    def register(body: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(body)
        def run(ctx: typer.Context, url: str | None, as_json: bool, config: Path | None, **own: Any) -> None:
            session = (ctx.obj or Session()).narrowed(url, as_json, config)
            with exit_codes(session.as_json):
                body(session, **own)

        own = list(inspect.signature(body).parameters.values())[1:]
        shared = inspect.signature(shared_options).parameters.values()
        # typer reads a command's options from its signature, and gives them by keyword.
        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *shared)]
        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        app.command(name, **settings)(run)
        return body

    return register


@contextmanager
def exit_codes(as_json: bool) -> Iterator[None]:
    """Turn a `Failure` into its message and exit code, and a reader who went away into a quiet end."""
    try:
        yield
        sys.stdout.flush()
    except Failure as failed:
        output.problem(failed.problem, as_json=as_json)
        raise typer.Exit(failed.exit_code) from None
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # or the interpreter's last flush complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_BROKEN_PIPE) from None
