"""Owns talking to the service: where it listens, and one request. It prints nothing: it raises `Failure`."""

import ipaddress
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import httpx
import orjson

from cli.failure import EXIT_FAILED, EXIT_UNREACHABLE, Failure, Json, exit_code, failure

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 600.0  # a batch of many rules is answered when it is durable and in the kernel

Query = Mapping[str, str | int | bool | list[str] | None]


@dataclass(frozen=True)
class Endpoint:
    """Where the service listens. `socket` is the path of a Unix socket, None for TCP."""

    base_url: str
    socket: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """`http://host:port`, `host:port` or `unix:/path`; ValueError for anything else."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:").removeprefix("//")
            if not path.startswith("/"):
                raise ValueError(f"{text}: the path of a Unix socket starts with /")
            return cls("http://localhost", path)
        try:
            url = httpx.URL(text if "://" in text else f"http://{text}")
        except httpx.InvalidURL as error:
            raise ValueError(f"{text}: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{text}: expected http://host:port, host:port or unix:/path")
        return cls(str(url).rstrip("/"))

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read what is sent."""
        return self.socket is not None or self.base_url.startswith("https://") or self._is_loopback

    @property
    def _is_loopback(self) -> bool:
        host = httpx.URL(self.base_url).host
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"unix:{self.socket}" if self.socket else self.base_url


@dataclass(frozen=True)
class Credentials:
    """`token`: sent with every request. `ca`, `certificate`, `key`: files in PEM. `reason`: for the audit."""

    token: str | None = None
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    reason: str | None = None

    def headers(self) -> dict[str, bytes]:
        """Raises ValueError where one cannot be sent."""
        found: dict[str, bytes] = {}
        if self.token:
            if not (self.token.isascii() and self.token.isprintable()):
                raise ValueError("the token is not one: it has characters that no token has")
            found["Authorization"] = f"Bearer {self.token}".encode()
        if self.reason:
            if not self.reason.isprintable():
                raise ValueError("the reason must be one line of text")
            found["X-Reason"] = self.reason.encode()
        return found

    def tls(self) -> ssl.SSLContext:
        """Raises ValueError where a file cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(name for name in (self.ca, self.certificate, self.key) if name)
            raise ValueError(f"cannot use the certificates ({files}): {error.strerror or error}") from None
        return context


class Client:
    """One connection to the service; a context manager. Raises ValueError where the credentials cannot be used."""

    def __init__(
        self,
        endpoint: Endpoint,
        transport: httpx.BaseTransport | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._endpoint = endpoint
        credentials = credentials or Credentials()
        is_tls = endpoint.base_url.startswith("https://")
        self._http = httpx.Client(
            base_url=endpoint.base_url,
            headers={name.encode(): value for name, value in credentials.headers().items()},
            transport=transport
            or httpx.HTTPTransport(uds=endpoint.socket, verify=credentials.tls() if is_tls else False),
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,  # a proxy for the web is no way to a firewall on this host
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, query: Query | None = None) -> Json:
        return _document(self.send("GET", path, query=query))

    def put(
        self, path: str, body: Json, headers: Mapping[str, str] | None = None, query: Query | None = None
    ) -> Json:
        return _document(self.send("PUT", path, body=body, headers=headers, query=query))

    def post(self, path: str, body: Json | None, query: Query | None = None) -> Json:
        return _document(self.send("POST", path, body=body, query=query))

    def upload(
        self, path: str, parts: Iterable[bytes], size: int | None, media_type: str, query: Query | None = None
    ) -> Json:
        """POST of a body of `size` bytes, None where nobody knows, in parts."""
        headers = {"Content-Type": media_type, **({} if size is None else {"Content-Length": str(size)})}
        with self.stream("POST", path, content=parts, query=query, headers=headers) as response:
            with self._unreachable():
                response.read()
            return _document(response)

    def delete(self, path: str, query: Query | None = None) -> Json | None:
        """What it would do, where it is only tried."""
        response = self.send("DELETE", path, query=query)
        return _document(response) if response.content else None

    def send(
        self,
        method: str,
        path: str,
        *,
        body: Json | None = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """The answer, read whole; `Failure` if the service cannot be reached or refuses."""
        with self.stream(method, path, body=body, query=query, headers=headers) as response:
            with self._unreachable():
                response.read()
            return response

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        body: Json | None = None,
        content: Iterable[bytes] | None = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        is_endless: bool = False,
    ) -> Iterator[httpx.Response]:
        """The answer with its body still to come. Whoever iterates the body does it inside the `with`. `body`: sent as
        JSON; `content`: sent as it is; `is_endless`: it is no fault when nothing comes for long."""
        sent: bytes | Iterable[bytes] | None = content
        if body is not None:
            sent, headers = orjson.dumps(body), {"Content-Type": "application/json", **(headers or {})}
        request = self._http.build_request(
            method,
            path,
            content=sent,
            params={key: value for key, value in (query or {}).items() if value is not None},
            headers=headers,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
            if is_endless
            else httpx.USE_CLIENT_DEFAULT,
        )
        with self._unreachable():
            response = self._http.send(request, stream=True)
        try:
            if response.is_error:
                with self._unreachable():
                    response.read()
                raise _refusal(response)
            with self._unreachable():
                yield response
        finally:
            response.close()

    @contextmanager
    def _unreachable(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            detail = f"cannot connect to {self._endpoint}: {error}"
            raise failure(
                EXIT_UNREACHABLE,
                "service_unreachable",
                "Service unreachable",
                detail,
                hint=_why_not(str(error)),
            ) from None
        except httpx.TransportError as error:
            detail = f"{self._endpoint} broke off before it answered: {error or type(error).__name__}"
            raise failure(
                EXIT_UNREACHABLE,
                "service_unreachable",
                "Service unreachable",
                detail,
                hint="a change may or may not have been made; look, or give the same command again",
            ) from None


def _why_not(error: str) -> str:
    """What to do where no connection came about."""
    if "CERTIFICATE_VERIFY_FAILED" in error:
        return "name the authority of the service's certificate with --ca, and the service as its certificate does"
    if "WRONG_VERSION_NUMBER" in error or "RECORD_LAYER_FAILURE" in error:
        return "it speaks no TLS there: use http://"
    return "is it running? systemctl status ebpf-fw; another address: --url or EBPF_FW_URL"


def _refusal(response: httpx.Response) -> Failure:
    try:
        problem = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        problem = None
    if not isinstance(problem, dict) or "title" not in problem:
        title = f"HTTP {response.status_code} {response.reason_phrase}".strip()
        problem = {"type": "about:blank", "title": title, "status": response.status_code}
    return Failure(problem, exit_code(response.status_code, problem.get("code")))


def _document(response: httpx.Response) -> Json:
    try:
        document = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        detail = f"{response.url} answered, but not as ebpf-fw does"
        raise failure(EXIT_FAILED, "unexpected_answer", "Unexpected answer", detail, hint="check --url")
    return document
