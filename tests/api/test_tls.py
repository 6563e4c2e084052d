"""TLS as a process serves it: certificates of the service and of clients, and newer ones without a restart."""

from __future__ import annotations

import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from api.certificate import expires_at
from api.tls import ServerTls
from firewall.errors import InvalidInput
from firewall.settings import Api
from tests.api.certificates import Authority
from tests.api.test_server import PATIENCE_S, Service, tcp_port
from tests.unit.host import wait_for


class TlsService(Service):
    """Over TCP it speaks TLS; `options` are lines of [api]."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.directory = directory
        self.ours, self.clients = Authority(directory, "ours"), Authority(directory, "clients")
        self.certificate, self.key = directory / "tls.pem", directory / "tls.key"
        self.ours.write_server(self.certificate, self.key, "127.0.0.1")
        self._text = self.config.read_text()
        self.configure()

    def configure(self, *options: str) -> None:
        lines = [f'tls_certificate = "{self.certificate}"', f'tls_key = "{self.key}"', *options]
        self.config.write_text(self._text.replace("[api]\n", "[api]\n" + "\n".join(lines) + "\n"))

    @property
    def port(self) -> int:
        return tcp_port(self.log)

    def tls(self, ca: Path | None = None, client: tuple[str, str] | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(ca or self.ours.pem))
        if client:
            context.load_cert_chain(*client)
        return context

    def get(self, path: str, context: ssl.SSLContext | None = None, **options: object) -> httpx.Response:
        url = f"https://127.0.0.1:{self.port}{path}"
        return httpx.get(url, verify=context or self.tls(), trust_env=False, timeout=PATIENCE_S, **options)  # type: ignore[arg-type]

    def serial(self) -> str:
        """Of the certificate that a new connection gets."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as plain,
            context.wrap_socket(plain) as secure,
        ):
            return str(hash(secure.getpeercert(binary_form=True)))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[TlsService]:
    made = TlsService(tmp_path)
    yield made
    made.close()


def fails(call: Callable[[], object]) -> str:
    with pytest.raises((httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)) as raised:
        call()
    return str(raised.value)


def test_tcp_speaks_tls_the_unix_socket_does_not_and_newer_files_need_no_restart(service: TlsService) -> None:
    service.start()
    assert service.get("/v1/rules").status_code == 200  # a loopback address, and there was never a token
    assert service.http.get("/v1/status").json()["api"]["tls"] is True
    assert "CERTIFICATE_VERIFY_FAILED" in fails(
        lambda: service.get("/healthz", service.tls(service.clients.pem))
    )
    fails(lambda: httpx.get(f"http://127.0.0.1:{service.port}/healthz", trust_env=False))
    old = ssl.create_default_context(cafile=str(service.ours.pem))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert service.get("/healthz", old).status_code == 200

    first = service.serial()
    kept = httpx.Client(verify=service.tls(), trust_env=False, base_url=f"https://127.0.0.1:{service.port}")
    assert kept.get("/healthz").status_code == 200
    service.ours.write_server(service.certificate, service.key, "127.0.0.1")
    wait_for(lambda: service.serial() != first, PATIENCE_S)  # by itself
    assert "certificates read again" in service.log
    assert kept.get("/healthz").status_code == 200  # what is open stays
    kept.close()

    second, good = service.serial(), service.certificate.read_bytes()
    service.certificate.write_text("no certificate")
    service.signal(signal.SIGHUP)
    wait_for(lambda: "the certificates were not read again" in service.log, PATIENCE_S)
    assert service.serial() == second and service.get("/healthz").status_code == 200
    service.certificate.write_bytes(good)

    service.ours.write_server(service.certificate, service.key, "127.0.0.1")
    service.signal(signal.SIGHUP)
    wait_for(lambda: service.serial() != second, PATIENCE_S)
    assert service.log.count("the certificates were not read again") == 1  # told once, not at each look
    assert "Traceback" not in service.log


def test_with_an_authority_for_clients_each_needs_a_certificate_of_it(service: TlsService) -> None:
    service.configure(
        'authentication = "required"',
        f'client_ca = "{service.clients.pem}"',
        'client_scopes = { "monitor" = "read" }',
    )
    service.start("drops")
    fails(lambda: service.get("/healthz"))
    fails(lambda: service.get("/healthz", service.tls(client=service.ours.client("monitor-of-others"))))
    monitor = service.tls(client=service.clients.client("monitor"))
    assert service.get("/v1/rules", monitor).status_code == 200
    other = service.tls(client=service.clients.client("other"))
    assert service.get("/v1/rules", other).json()["code"] == "authentication_required"
    text = service.http.post("/v1/tokens", json={"scope": "rules"}).json()["token"]
    assert service.get("/v1/rules", other, headers={"X-API-Key": text}).status_code == 200
    url = f"https://127.0.0.1:{service.port}/v1/rules"
    refused = httpx.post(url, json={}, verify=monitor, trust_env=False)
    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")
    assert "certificate:monitor has the scope read" in refused.json()["detail"]

    body = {"scope": "admin", "name": "short"}
    text = service.http.post("/v1/tokens", json=body).json()["token"]
    stream = {"headers": {"Authorization": f"Bearer {text}"}, "timeout": PATIENCE_S}
    url = f"https://127.0.0.1:{service.port}/v1/capture"
    with (
        httpx.Client(verify=other, trust_env=False) as client,
        client.stream("GET", url, **stream) as captured,  # type: ignore[arg-type]
    ):
        assert captured.status_code == 200
        assert service.http.delete("/v1/tokens/short").status_code == 204
        for _ in captured.iter_raw():  # what goes on with a token ends with it
            pass


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda service: service.key.unlink(), "No such file"),
        (lambda service: service.certificate.write_text("x"), "cannot use the certificates"),
        (
            lambda service: service.ours.write_server(service.directory / "x", service.key, "127.0.0.1"),
            "key values mismatch",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named(
    service: TlsService, spoil: Callable[[TlsService], None], words: str
) -> None:
    spoil(service)
    settings = Api(tls_certificate=str(service.certificate), tls_key=str(service.key))
    with pytest.raises(InvalidInput, match=words) as raised:
        ServerTls(settings)
    assert str(service.certificate) in raised.value.detail and raised.value.code == "invalid_certificate"


@pytest.mark.parametrize(("days", "verb"), [(13, "expires"), (-1, "expired"), (30, None)])
def test_a_certificate_that_expires_soon_is_warned_about(
    service: TlsService, days: int, verb: str | None
) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    service.ours.write_server(service.certificate, service.key, "127.0.0.1", not_after=ends)
    tls = ServerTls(Api(tls_certificate=str(service.certificate), tls_key=str(service.key)))
    assert tls.expires_at == ends.timestamp()
    now = time.time()
    expected = [f"the certificate {service.certificate} {verb} at {ends:%Y-%m-%dT%H:%M:%SZ}"] if verb else []
    assert tls.warnings(now) == expected
    with capture_logs() as logged:
        for later in (0, 60, 86400, 86460):  # once a day
            tls.warn(now + later)
    assert [each["event"] for each in logged] == expected * 2


def test_the_log_and_the_status_tell_when_it_expires_and_a_newer_one_ends_that(service: TlsService) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    service.ours.write_server(service.certificate, service.key, "127.0.0.1", not_after=ends)
    service.start()
    wait_for(lambda: f"{service.certificate} expires at" in service.log, PATIENCE_S)
    state = service.http.get("/v1/status").json()["api"]
    assert state["tls_expires_at"] == f"{ends:%Y-%m-%dT%H:%M:%SZ}"
    assert [str(service.certificate) in each for each in state["warnings"]] == [True]
    later = ends + timedelta(days=90)
    service.ours.write_server(service.certificate, service.key, "127.0.0.1", not_after=later)
    wait_for(lambda: service.http.get("/v1/status").json()["api"]["warnings"] == [], PATIENCE_S)


@pytest.mark.parametrize("year", [2049, 2050])  # the two forms of time
def test_the_first_of_a_chain_to_expire_counts(service: TlsService, year: int) -> None:
    last = service.certificate.read_text()
    ends = datetime(year, 1, 31, 23, 59, 58, tzinfo=UTC)
    service.ours.write_server(service.certificate, service.key, "127.0.0.1", not_after=ends)
    first = service.certificate.read_text()
    for chain in (first, first + last, last + first):
        assert expires_at(chain) == ends.timestamp()
    assert expires_at("no certificate") is None
    assert expires_at(first.replace("M", "A")) is None


def test_they_end_the_start_with_status_2(service: TlsService) -> None:
    service.key.unlink()
    service.launch()
    assert service.status() == 2
    assert "cannot use the certificates" in service.log and "Traceback" not in service.log
    assert "hint: see api.tls_certificate" in service.log


def test_an_open_api_is_said_at_the_start(tmp_path: Path) -> None:
    service = Service(tmp_path)
    text = service.config.read_text().replace("127.0.0.1:0", "0.0.0.0:0")
    service.config.write_text(text.replace("[api]\n", '[api]\ninsecure = true\nauthentication = "none"\n'))
    try:
        service.start()
        assert "open to the network without TLS" in service.log
        assert "open to the network without authentication" in service.log
        assert service.http.get("/v1/status").json()["api"]["insecure"] is True
    finally:
        service.close()


def test_a_handshake_that_does_not_come_is_ended(service: TlsService) -> None:
    service.configure("header_timeout_s = 1")
    service.start()
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE_S) as silent:
        assert silent.recv(100) == b""
    assert 0.5 < time.monotonic() - began < PATIENCE_S
    assert service.get("/healthz").status_code == 200


MOST = 8


def test_handshakes_under_way_are_limited_and_the_oldest_goes(service: TlsService) -> None:
    """Each of them costs memory and a descriptor before anybody has shown who it is."""
    service.configure(f"max_connections = {MOST}", "header_timeout_s = 60")
    service.start()
    assert service.process is not None
    directory = Path(f"/proc/{service.process.pid}/fd")
    before = len(list(directory.iterdir()))
    with ExitStack() as stack:
        silent = []
        for _ in range(40):
            silent.append(stack.enter_context(socket.create_connection(("127.0.0.1", service.port))))
            silent[-1].settimeout(PATIENCE_S)
        assert [each.recv(1) for each in silent[: 40 - MOST]] == [b""] * (40 - MOST)
        assert service.get("/healthz").status_code == 200, "whoever means it gets in"
        assert service.get("/healthz").status_code == 200
        wait_for(lambda: len(list(directory.iterdir())) <= before + MOST + 2, PATIENCE_S)
        assert "too many TLS handshakes under way" in service.log
    assert "Traceback" not in service.log
    wait_for(lambda: len(list(directory.iterdir())) <= before + 2, PATIENCE_S)


def test_a_stop_does_not_wait_for_handshakes(service: TlsService) -> None:
    service.configure("header_timeout_s = 60")
    service.start()
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE_S) as silent:
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        assert service.status() == 0
        assert silent.recv(1) == b""
    assert time.monotonic() - began < 5 and "Traceback" not in service.log
