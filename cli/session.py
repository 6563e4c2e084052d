"""Owns what all commands share: where the service is, who asks it, `--json`, and how a failure becomes an exit code.

People type these options before the command or after it, so every command and every group takes them, and
the nearest to the command wins.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import output
from cli.client import Client, Credentials, Endpoint
from cli.failure import Failure

if TYPE_CHECKING:
    from firewall.settings import Settings

DEFAULT_CONFIG = Path("/etc/ebpf-fw/config.toml")
DEFAULT_URL = "127.0.0.1:9378"
URL_VARIABLE = "EBPF_FW_URL"
TOKEN_FILE = Path("/etc/ebpf-fw/token")
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


def _text(flag: str, metavar: str, meaning: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=meaning, show_default=False)


Token = Annotated[str | None, _text("--token", "TOKEN", "Also EBPF_FW_TOKEN, which other users do not see.")]
TokenFile = Annotated[
    Path | None,
    _text("--token-file", "FILE", f"With the token. Also EBPF_FW_TOKEN_FILE. Default: {TOKEN_FILE}."),
]
Ca = Annotated[str | None, _text("--ca", "FILE", "Authority of the service's certificate. Also EBPF_FW_CA.")]
Certificate = Annotated[str | None, _text("--cert", "FILE", "This client's certificate. Also EBPF_FW_CERT.")]
Key = Annotated[str | None, _text("--key", "FILE", "Its key. Also EBPF_FW_KEY.")]
Why = Annotated[
    str | None, _text("--why", "TEXT", "The reason of a change, for the audit. Also EBPF_FW_WHY.")
]


@dataclass(frozen=True)
class Session:
    """What one run of the command line was told."""

    url: str | None = None
    as_json: bool = False
    config: Path | None = None
    token: str | None = None
    token_file: Path | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    why: str | None = None

    def narrowed(self, **nearer: Any) -> "Session":
        """With the options that stood nearer to the command."""
        return Session(
            **{each.name: nearer.get(each.name) or getattr(self, each.name) for each in fields(self)}
        )

    def client(self) -> Client:
        try:
            endpoint = Endpoint.parse(self.address())
            return Client(endpoint, credentials=self.credentials(endpoint))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    def credentials(self, endpoint: Endpoint) -> Credentials:
        """Options, else variables. The token of the default file goes to no address where others can read it, and to
        no Unix socket: there the kernel says who asks."""
        told = os.environ.get
        token = self.token or self._token_in(self.token_file) or told("EBPF_FW_TOKEN")
        if not token and (name := told("EBPF_FW_TOKEN_FILE")):
            token = self._token_in(Path(name))
        if token and not endpoint.is_private:
            output.note(f"the token goes to {endpoint} unencrypted: whoever is on the way can read it")
        if not token and endpoint.is_private and not endpoint.socket and os.access(TOKEN_FILE, os.R_OK):
            token = self._token_in(TOKEN_FILE)
        return Credentials(
            token,
            self.ca or told("EBPF_FW_CA"),
            self.cert or told("EBPF_FW_CERT"),
            self.key or told("EBPF_FW_KEY"),
            self.why or told("EBPF_FW_WHY"),
        )

    @staticmethod
    def _token_in(path: Path | None) -> str | None:
        """Raises ValueError where it cannot be read."""
        if path is None:
            return None
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the token in {path}: {error}") from None
        if not token:
            raise ValueError(f"{path} holds no token")
        return token

    def address(self) -> str:
        """`--url`, else EBPF_FW_URL, else the first listen address of the config (with TLS, a Unix socket first), else
        the default."""
        if told := self.url or os.environ.get(URL_VARIABLE):
            return told
        settings = self.settings()
        return _address_of(settings) if settings else DEFAULT_URL

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


def _address_of(settings: "Settings") -> str:
    """As a client of this host asks for it."""
    listen = settings.api.listen
    if not settings.api.has_tls:
        first = listen[0]
    else:
        first = next((each for each in listen if each.startswith("unix:")), f"https://{listen[0]}")
    for everywhere, here in (("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")):
        if first.removeprefix("https://").startswith(everywhere):
            first = first.replace(everywhere, here, 1)
    return first


def shared_options(
    ctx: typer.Context,
    url: Url = None,
    as_json: AsJson = False,
    config: Config = None,
    token: Token = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Certificate = None,
    key: Key = None,
    why: Why = None,
) -> None:
    """The callback of every group of commands."""
    told = {name: value for name, value in locals().items() if name != "ctx"}
    ctx.obj = (ctx.obj or Session()).narrowed(**told)


def command(
    app: typer.Typer, name: str, **settings: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function `(session, its own options...)` as a command that takes the shared options too."""

    def register(body: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(body)
        def run(ctx: typer.Context, **given: Any) -> None:
            told = {name: given.pop(name) for name in shared_names}
            session = (ctx.obj or Session()).narrowed(**told)
            with exit_codes(session.as_json):
                body(session, **given)

        shared_names = [name for name in inspect.signature(shared_options).parameters if name != "ctx"]
        own = list(inspect.signature(body).parameters.values())[1:]
        app.command(name, **settings)(with_shared_options(run, own))
        return body

    return register


def with_shared_options(run: Callable[..., None], own: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Typer reads options from a signature, and gives them by keyword: it finds the shared ones behind the `own`."""
    shared = inspect.signature(shared_options).parameters.values()
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *shared)]
    run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    return run


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
