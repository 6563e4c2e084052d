"""Clients that take their time: at the head, at the body, at reading. They hold nobody up, and not for long."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from api.complaints import BETWEEN_S, Complaints
from api.connection import LEAST_A_NETWORK, MOST_WAITING, Connections
from api.export import ExportEnded, bounded
from tests.api.test_server import PATIENCE_S, Service, tcp_port
from tests.unit.host import wait_for

HEADER_S, BODY_S, WRITE_S, MOST = 1, 1, 2, 40
DEAF = "client does not read its answer"
LATE_S = 8.0  # a look comes every second, and the machine is shared


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all: what a client does here concerns no other."""
    made = Service(tmp_path_factory.mktemp("slow"))
    limits = f"header_timeout_s = {HEADER_S}\nbody_timeout_s = {BODY_S}\nwrite_timeout_s = {WRITE_S}\n"
    limits += f"max_connections = {MOST}\nmax_header_bytes = 4096\n"
    made.config.write_text(made.config.read_text().replace("[api]\n", f"[api]\n{limits}"))
    made.start("drops")
    try:
        yield made
        assert "Traceback" not in made.log, made.log
    finally:
        made.close()


def connected(service: Service, is_unix: bool = False) -> socket.socket:
    if is_unix:
        found = socket.socket(socket.AF_UNIX)
        found.connect(str(service.socket))
    else:
        found = socket.create_connection(("127.0.0.1", tcp_port(service.log)))
    found.settimeout(PATIENCE_S)
    return found


def memory_kb(service: Service) -> int:
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def answer_of(opened: socket.socket) -> bytes:
    """Until the other side ends it."""
    found = b""
    try:
        while part := opened.recv(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    return found


def trickled(opened: socket.socket, part: bytes, pause_s: float = 0.1) -> float:
    """Sends a part again and again until that is not taken any more; how long it was."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE_S:
        try:
            opened.sendall(part)
            opened.settimeout(pause_s)
            if not opened.recv(1 << 16):
                return time.monotonic() - began
        except TimeoutError:
            continue
        except OSError:
            return time.monotonic() - began
        else:
            return time.monotonic() - began
    raise AssertionError("it goes on for ever")


@pytest.mark.parametrize("is_unix", [False, True])
def test_a_head_that_comes_slowly_is_ended(service: Service, is_unix: bool) -> None:
    with connected(service, is_unix) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert HEADER_S / 2 < trickled(slow, b"X-A: b\r\n") < LATE_S


def test_it_is_told_so(service: Service) -> None:
    with connected(service) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        answer = answer_of(slow)
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"request_timeout"' in answer
    assert b"application/problem+json" in answer and b"connection: close" in answer


def test_a_connection_on_which_nothing_comes_is_ended(service: Service) -> None:
    with connected(service) as silent:
        assert answer_of(silent) == b""


def test_empty_lines_between_requests_keep_no_connection(service: Service) -> None:
    with connected(service) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert trickled(slow, b"\r\n") < LATE_S


def test_a_second_head_has_no_more_time_than_the_first(service: Service) -> None:
    with connected(service) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert trickled(slow, b"X-A: b\r\n") < LATE_S


def test_a_head_that_is_too_large_is_a_431_at_once_or_in_parts(service: Service) -> None:
    for parts in ([b"X-A: " + b"b" * 5000 + b"\r\n\r\n"], [b"X-A: b\r\n"] * 600, [b"X-A: " + b"b" * 6000]):
        with connected(service) as large:
            large.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            try:
                for part in parts:
                    large.sendall(part)
            except OSError:
                pass
            answer = answer_of(large)
        assert answer.startswith(b"HTTP/1.1 431 ") and b'"code":"header_too_large"' in answer


@pytest.mark.parametrize("is_unix", [False, True])
def test_a_body_that_comes_slowly_is_ended_and_changes_nothing(service: Service, is_unix: bool) -> None:
    head = b"POST /v1/rules HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 100000\r\n\r\n"
    with connected(service, is_unix) as slow:
        slow.sendall(head + b'{"id": "slow", ')
        assert BODY_S / 2 < trickled(slow, b" ") < LATE_S
    assert service.http.get("/v1/rules/slow").status_code == 404


def test_a_body_behind_a_refusal_is_not_waited_for(service: Service) -> None:
    head = b"POST /v1/rules HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: x\r\nContent-Length: 60000000\r\n\r\n"
    with connected(service) as slow:
        slow.sendall(head)
        assert slow.recv(1 << 16).startswith((b"HTTP/1.1 401", b"HTTP/1.1 429"))
        assert trickled(slow, b"x" * 2000) < LATE_S


def test_a_body_that_comes_steadily_may_take_longer_than_the_first_time(service: Service) -> None:
    content = b'{"id": "steady", "description": "' + b"x" * 1000 + b'"' + b" " * 20_000 + b"}"
    head = b"POST /v1/rules HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with connected(service) as steady:
        steady.sendall(head + f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode())
        for at in range(0, len(content), 1500):
            steady.sendall(content[at : at + 1500])
            time.sleep(0.2)
        assert answer_of(steady).startswith(b"HTTP/1.1 201")


CHUNKED = b"POST /v1/rules HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begun", "part"),
    [
        (b"0\r\n", b"X-A: " + b"b" * 60_000 + b"\r\n"),
        (b"0\r\nX-A: ", b"b" * 60_000),
        (b"2;", b"b" * 60_000),
    ],
    ids=["trailers", "one trailer", "an extension of a chunk"],
)
def test_what_stands_beside_a_body_takes_no_memory(service: Service, begun: bytes, part: bytes) -> None:
    before, sent = memory_kb(service), 0
    with connected(service) as large:
        large.sendall(CHUNKED + begun)
        with suppress(OSError):
            while sent < 200_000_000:
                large.sendall(part)
                sent += len(part)
    assert sent < 20_000_000
    assert memory_kb(service) - before < 20_000


def test_it_is_told_that_trailers_are_too_large(service: Service) -> None:
    with connected(service) as large:
        large.sendall(CHUNKED + b"2\r\n{}\r\n0\r\nX-A: ")
        time.sleep(0.3)  # what comes with the end of the body in one read is not counted
        large.sendall(b"b" * 5000)
        answer = answer_of(large)
    assert answer.startswith(b"HTTP/1.1 431 ") and b'"code":"header_too_large"' in answer


def test_a_trailer_is_no_header(service: Service) -> None:
    """If it were, this would be a 412."""
    with connected(service) as opened:
        opened.sendall(b"PUT /v1/ruleset HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        opened.sendall(b'd\r\n{"rules": []}\r\n0\r\nIf-Match: "another"\r\n\r\n')
        assert opened.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_what_is_no_http_is_told_so_and_makes_few_lines_in_the_log(service: Service) -> None:
    for _ in range(50):
        with connected(service) as stranger:
            stranger.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            answer = answer_of(stranger)
        assert answer.startswith(b"HTTP/1.1 400 ") and b'"code":"invalid_http"' in answer
        assert b"application/problem+json" in answer and b"connection: close" in answer
    assert 0 < service.log.count("client does not speak HTTP") < 5


def test_an_answer_under_way_is_not_mixed_with_another(service: Service) -> None:
    with connected(service) as opened:
        opened.sendall(b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert opened.recv(1 << 16).startswith(b"HTTP/1.1 200")
        opened.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        assert b"HTTP/1.1 " not in answer_of(opened)


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_another_protocol_is_not_spoken_and_not_complained_of(service: Service, protocol: bytes) -> None:
    with connected(service) as opened:
        opened.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n")
        opened.sendall(b"Upgrade: " + protocol + b"\r\n\r\n")
        answer = answer_of(opened)
    assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer
    assert "pgrade" not in service.log


def test_a_client_that_does_not_read_is_ended_and_its_listener_with_it(service: Service) -> None:
    with connected(service) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"GET /v1/capture HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        wait_for(lambda: DEAF in service.log, 60)
    assert service.http.get("/v1/rules").status_code == 200


def test_answers_that_nobody_reads_hold_no_connection(service: Service) -> None:
    """Each is small; they pile up where the next request comes before the last answer was read."""
    before = service.log.count(DEAF)
    with connected(service) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * MOST_WAITING)
        wait_for(lambda: service.log.count(DEAF) > before, 60)


def test_requests_that_come_before_their_answers_by_the_thousand_end_the_connection(service: Service) -> None:
    """Each would wait in memory."""
    with connected(service) as flood:
        flood.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 4000)
        assert answer_of(flood).count(b"HTTP/1.1 200") < 1000
    wait_for(lambda: "client does not wait for its answers" in service.log, PATIENCE_S)


def test_others_are_served_while_some_are_slow_and_the_unix_socket_always_is(service: Service) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(service)) for _ in range(MOST // 4)]
        for each in slow:
            each.sendall(b"GET /healthz HTTP/1.1\r\n")
        refused = stack.enter_context(connected(service))  # a quarter is what one address may have
        assert answer_of(refused) == b""
        assert service.http.get("/v1/rules").status_code == 200
        assert "too many connections" in service.log

    def is_answered() -> bool:
        url = f"http://127.0.0.1:{tcp_port(service.log)}/healthz"
        try:
            return httpx.get(url, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    wait_for(is_answered, PATIENCE_S)  # there is room again


def test_changes_go_on_while_slow_clients_come_and_go(service: Service) -> None:
    stop = threading.Event()

    def pester() -> None:
        while not stop.is_set():
            with connected(service) as slow:
                slow.sendall(b"POST /v1/rules HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n{")
                time.sleep(0.05)

    threads = [threading.Thread(target=pester) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(100):
            answer = service.http.post("/v1/rules", json={"id": f"n{number}", "sources": f"10.0.1.{number}"})
            assert answer.status_code == 201
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_descriptors_are_given_back(service: Service) -> None:
    assert service.process is not None
    directory = Path(f"/proc/{service.process.pid}/fd")
    for _ in range(60):
        with connected(service) as opened:
            opened.sendall(b"GET /")
    wait_for(lambda: len(os.listdir(directory)) < 60, PATIENCE_S)


def test_a_network_may_have_a_quarter_of_all_connections() -> None:
    found = Connections(40)
    assert [found.enter("a") for _ in range(11)] == [True] * 10 + [False]
    assert found.enter("b")
    found.leave("a")
    assert found.enter("a")
    assert [found.enter(f"n{number}") for number in range(30)] == [True] * 29 + [False]
    for _ in range(10):
        found.leave("a")
    assert "a" not in found._by_network
    assert [Connections(8).enter("a")] * LEAST_A_NETWORK == [True] * LEAST_A_NETWORK


def test_the_first_complaint_of_a_kind_is_told_at_once_and_the_others_with_their_number() -> None:
    now = 0.0
    complaints = Complaints(lambda: now)
    with capture_logs() as told:
        for number in range(100):
            complaints.say("it is slow", client=f"c{number}")
        complaints.say("it is deaf", client="d")
        complaints.flush()
        now += BETWEEN_S
        complaints.flush()
        complaints.flush()
        now += BETWEEN_S
        complaints.say("it is slow", client="c100")
    assert [(each["event"], each["client"], each.get("times", 1)) for each in told] == [
        ("it is slow", "c0", 1),
        ("it is deaf", "d", 1),
        ("it is slow", "c99", 99),
        ("it is slow", "c100", 1),
    ]


def test_an_export_that_nobody_reads_to_its_end_is_cut() -> None:
    """The database keeps its moment meanwhile. What was sent must not look whole."""
    now = 0.0
    parts = bounded(iter([b"a", b"b", b"c"]), 10, lambda: now)
    assert next(parts) == b"a"
    now = 10.0
    assert next(parts) == b"b"
    now = 10.1
    with pytest.raises(ExportEnded):
        next(parts)


def test_the_client_of_an_export_that_was_cut_sees_that(
    tmp_path: Path,
) -> None:
    made = Service(tmp_path)
    made.start("exports-are-slow")
    try:
        rules = [
            {"id": f"r{number}", "sources": f"10.0.{number >> 8}.{number & 255}"} for number in range(3000)
        ]
        assert made.http.put("/v1/ruleset", json={"rules": rules}).status_code == 200
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            made.http.get("/v1/ruleset")
        assert "an export took too long and was ended" in made.log and "Traceback" not in made.log
        assert made.http.get("/v1/rules/r1").status_code == 200
    finally:
        made.close()
