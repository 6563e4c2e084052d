"""One connection of a client, with an end to its patience: a client that is slow holds nothing but its own connection,
and that not for long.

Owns the limits that stand before a request is one: how long a head and a body may take, how long answers may wait to be
read, how large a head may be and what stands beside a body (trailers, extensions of chunks), how many connections a
network may have. The Unix socket is not limited in their number. HTTP itself is uvicorn's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.attempts import network_of
from api.complaints import Complaints
from api.errors import problem_response
from api.peer import PEER, Peer, peer_of
from firewall.settings import Api

LEAST_BODY_RATE = 1024  # bytes a second, once the first time is over
LEAST_A_NETWORK = 8
MOST_WAITING = 100  # requests that came before the last answer: each costs memory


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds and bytes."""

    header_s: float
    body_s: float
    write_s: float
    most_header_bytes: int

    @classmethod
    def of(cls, settings: Api) -> Patience:
        return cls(
            settings.header_timeout_s,
            settings.body_timeout_s,
            settings.write_timeout_s,
            settings.max_header_bytes,
        )


class Connections:
    """How many there are over TCP, in all and by network; and what is told of them."""

    def __init__(self, most: int, complaints: Complaints | None = None) -> None:
        self.most = most
        self._most_a_network = max(LEAST_A_NETWORK, most // 4)
        self._by_network: Counter[str] = Counter()
        self.complaints = complaints or Complaints()

    def enter(self, network: str) -> bool:
        """Whether there is room."""
        of_network = self._by_network[network]
        if self._by_network.total() >= self.most or of_network >= self._most_a_network:
            self.complaints.say("too many connections", client=network)
            return False
        self._by_network[network] = of_network + 1
        return True

    def leave(self, network: str) -> None:
        self._by_network[network] -= 1
        if self._by_network[network] <= 0:
            del self._by_network[network]


class Connection(HttpToolsProtocol):
    """look() is called now and then."""

    def __init__(self, patience: Patience, connections: Connections, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._patience = patience
        self._in_all = connections
        self._peer = Peer()
        self._network: str | None = None
        self._is_refused = False
        self._part = "head"  # of a request that is being read: head, body, or none
        self._since = 0.0
        self._head_bytes = self._raw_head_bytes = self._body_bytes = self._beside_body_bytes = 0
        self._blocked_since: float | None = None
        self._closing_since: float | None = None
        self._served: Any = None  # the request that is answered: where more were sent, not the last one

    # -- what uvicorn is told by the event loop and by the parser

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._peer = peer_of(transport)
        self._begin("head")
        if self.client is not None:
            network = network_of(self.client[0])
            if not self._in_all.enter(network):
                self._is_refused = True
                transport.abort()
                return
            self._network = network

    def connection_lost(self, exc: Exception | None) -> None:
        if self._network is not None:
            self._in_all.leave(self._network)
            self._network = None
        self._release()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._part == "head":
            self._raw_head_bytes += len(data)
        self._beside_body_bytes += len(data)  # until something of the body comes
        self._parse(data)
        beside = {"head": self._raw_head_bytes, "body": self._beside_body_bytes}.get(self._part, 0)
        if beside > self._patience.most_header_bytes:
            self._refuse_head()
        if self._part == "none" and self.timeout_keep_alive_task is None and self._is_answered:
            self._begin("head")  # what came was no beginning of a request, and must not keep the connection

    def _parse(self, data: bytes) -> None:
        """As uvicorn does, with our answer and our log."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # answered as if it had not asked for that, and there is an end
        except httptools.HttpParserError:
            self._complain("client does not speak HTTP")
            self._refuse(problem_response(400, "invalid_http", "this is no request of HTTP/1.1", ""))

    def on_message_begin(self) -> None:
        if self._part != "head":
            self._begin("head")
        self._head_bytes = 0
        super().on_message_begin()
        self.scope[PEER] = self._peer  # type: ignore[literal-required]

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part == "body":
            return  # a trailer: nobody reads it
        self._head_bytes += len(name) + len(value) + 4
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._head_bytes > self._patience.most_header_bytes:
            self._refuse_head()
        if len(self.pipeline) >= MOST_WAITING and not self._is_refused:
            self._complain("client does not wait for its answers")
            self._is_refused = True
            self._abort()
        if self._is_refused:
            return
        self._begin("body")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._is_refused:
            return
        self._body_bytes += len(body)
        self._beside_body_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_refused:
            return
        self._part = "none"
        super().on_message_complete()

    def pause_writing(self) -> None:
        self._blocked_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._blocked_since = None
        super().resume_writing()

    # -- patience

    def look(self) -> None:
        """Ends the connection where the client took too long."""
        now, patience = self.loop.time(), self._patience
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
            if now - self._closing_since > patience.write_s:
                self._abort()  # it does not read what is left
        elif self._blocked_since is not None and now - self._blocked_since > patience.write_s:
            self._complain("client does not read its answer")
            self._abort()
        elif self._part == "head" and now - self._since > patience.header_s:
            self._refuse_slow("head")
        elif self._part == "body" and self._is_body_late(now):
            self._refuse_slow("body")

    def _is_body_late(self, now: float) -> bool:
        if self._is_answered:  # nobody wants it any more
            return now - self._since > self._patience.header_s
        allowed = self._patience.body_s + self._body_bytes / LEAST_BODY_RATE
        return not self.flow.read_paused and now - self._since > allowed

    @property
    def _is_answered(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete

    @property
    def _told(self) -> str:
        return "unix" if self.client is None else f"{self.client[0]}:{self.client[1]}"

    def _complain(self, what: str, **fields: str) -> None:
        self._in_all.complaints.say(what, client=self._told, **fields)

    def _begin(self, part: str) -> None:
        self._part, self._since = part, self.loop.time()
        self._head_bytes = self._raw_head_bytes = self._body_bytes = self._beside_body_bytes = 0

    def _refuse_head(self) -> None:
        detail = f"the head of the request is larger than {self._patience.most_header_bytes} bytes"
        self._refuse(problem_response(431, "header_too_large", detail, "", "see api.max_header_bytes"))

    def _refuse_slow(self, part: str) -> None:
        self._complain("client is too slow", part=part)
        if part == "head" and self._raw_head_bytes == 0:
            self._is_refused = True
            self.transport.close()  # it never asked for anything
            return
        detail = f"the {part} of the request did not come in time"
        self._refuse(problem_response(408, "request_timeout", detail, ""))

    def _abort(self) -> None:
        self._release()
        self.transport.abort()

    def _release(self) -> None:
        """Who answers hears that nobody is there any more."""
        if self._served is not None and not self._served.response_complete:
            self._served.disconnected = True
            self._served.message_event.set()

    def _refuse(self, response: Response) -> None:
        """The last answer of this connection; none where one is under way."""
        if self._is_refused:
            return
        self._is_refused = True
        if self.cycle is None or self._is_answered or not self.cycle.response_started:
            head = [STATUS_LINE[response.status_code], b"connection: close\r\n"]
            head += [b"%s: %s\r\n" % each for each in response.raw_headers]
            self.transport.write(b"".join([*head, b"\r\n", bytes(response.body)]))
        self._release()
        self.transport.close()
