"""Who a request comes from, and whether it may do what it asks. The one place that lets requests in.

Owns the order in which credentials count: a token that is sent, else the process behind a Unix socket, else the
certificate of a TLS client, else nobody, who may do everything where authentication is not asked for, and nothing where
it is. What a request needs is api.permissions'.
"""

from __future__ import annotations

import grp
import ipaddress
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.attempts import Attempts
from api.errors import RequestRefused
from api.guard import is_unix_socket, request_id
from api.origin import ACTING, Acting, reason_of
from api.peer import PEER, Peer, Process
from api.permissions import ADMIN, OPEN, needed, suffices
from api.tls import ServerTls
from firewall.audit_entry import Origin
from firewall.enforcer import Enforcer
from firewall.errors import NotAuthenticated
from firewall.rule import format_time
from firewall.settings import Api
from firewall.tokens import Token

log = structlog.get_logger(__name__)

_SCHEME = "bearer "
_NOBODY = Peer()
_CLOSE = {"Connection": "close"}
HINT = "send a token: Authorization: Bearer efw_...; one is made with: ebpf-fw token create"


@dataclass(frozen=True, slots=True)
class Identity:
    """`actor`: as in the audit. `token`: what it was shown by, if by one."""

    actor: str
    scope: str
    token: Token | None = None


ANONYMOUS = Identity("anonymous", ADMIN)


class Access:
    """Used on the event loop alone."""

    def __init__(self, firewall: Enforcer, settings: Api, tls: ServerTls | None = None) -> None:
        self._firewall = firewall
        self._settings = settings
        self._tls = tls
        self._group = group_number(settings.socket_group)
        self.attempts = Attempts()

    @property
    def is_asked_for(self) -> bool:
        """Whether a TCP client of this host needs credentials."""
        asked = self._settings.authentication
        return asked == "required" or (asked == "auto" and self._firewall.has_had_tokens)

    def state(self) -> dict[str, object]:
        """For the status."""
        settings, tls = self._settings, self._tls
        expires_at = tls.expires_at if tls else None
        return {
            "listen": settings.listen,
            "tls": settings.has_tls,
            "tls_expires_at": None if expires_at is None else format_time(expires_at),
            "client_certificates": bool(settings.client_ca),
            "authentication": settings.authentication,
            "credentials_needed": self.is_asked_for,
            "insecure": settings.insecure,
            "warnings": [*warnings_of(settings), *(tls.warnings(time.time()) if tls else ())],
        }

    def admit(self, scope: Scope, headers: Headers) -> Acting:
        """Raises RequestRefused."""
        needs = needed(scope["method"], scope["path"])
        origin = partial(
            Origin,
            source=source_of(scope),
            request_id=request_id(scope),
            call=f"{scope['method']} {scope['path']}",
            reason=reason_of(headers),
        )
        if needs == OPEN:
            return Acting(origin(ANONYMOUS.actor), OPEN, lambda: True)
        identity = self._identified(scope, headers, origin)
        if not suffices(identity.scope, needs):
            self.attempts.note(origin(identity.actor), "insufficient_scope")
            raise _insufficient(identity, needs, scope)
        return Acting(origin(identity.actor), identity.scope, self._lasting(identity.token))

    def _lasting(self, token: Token | None) -> Callable[[], bool]:
        return (lambda: True) if token is None else partial(self._firewall.is_in_force, token)

    def _identified(self, scope: Scope, headers: Headers, origin: Callable[[str], Origin]) -> Identity:
        try:
            text = _credential(headers)
            if text is not None:
                token = self._firewall.token_of(text)
                return Identity(f"token:{token.name}", token.scope, token)
        except NotAuthenticated as error:
            raise self._failed(scope, error, origin) from None
        peer: Peer = scope.get(PEER, _NOBODY)
        if is_unix_socket(scope):
            return self._of_process(peer.process, origin)
        identity = self._of_certificate(peer)
        if identity is not None:
            return identity
        if self._may_be_anybody(scope):
            return ANONYMOUS
        self.attempts.note(
            origin(_certified(peer.names[-1]) if peer.names else ANONYMOUS.actor),
            "authentication_required",
        )
        named = f"; the certificate of {peer.names[-1]!r} has no scope in client_scopes" if peer.names else ""
        raise RequestRefused(
            401,
            "authentication_required",
            f"this needs credentials{named}",
            HINT,
            headers={"WWW-Authenticate": _challenge()},
        )

    def _failed(
        self, scope: Scope, error: NotAuthenticated, origin: Callable[[str], Origin]
    ) -> RequestRefused:
        self.attempts.note(origin(ANONYMOUS.actor), error.code)
        wait = 0 if is_unix_socket(scope) else self.attempts.fail(str((scope.get("client") or ("",))[0]))
        if wait:
            return RequestRefused(
                429,
                "too_many_attempts",
                "too many credentials from this address were wrong",
                f"come back in {wait} s, with the right ones",
                headers={"Retry-After": str(wait), **_CLOSE},
            )
        headers = {"WWW-Authenticate": _challenge("invalid_token")}
        return RequestRefused(401, error.code, error.detail, error.hint, headers=headers)

    def _of_process(self, process: Process | None, origin: Callable[[str], Origin]) -> Identity:
        if process is not None:
            if process.uid in (0, os.geteuid()) or self._group in process.groups:
                return Identity(f"uid:{process.uid}", ADMIN)
            self.attempts.note(origin(f"uid:{process.uid}"), "peer_not_allowed")
        who = "this process" if process is None else f"user {process.uid}"
        raise RequestRefused(
            403,
            "peer_not_allowed",
            f"{who} may not use this socket: it is for root and the group {self._settings.socket_group}",
            f"ask as root, join the group {self._settings.socket_group}, or send a token",
        )

    def _of_certificate(self, peer: Peer) -> Identity | None:
        scopes = self._settings.client_scopes
        for name, scope in scopes.items():
            if name in peer.names:
                return Identity(_certified(name), scope)
        if peer.names and "*" in scopes:
            return Identity(_certified(peer.names[-1]), scopes["*"])
        return None

    def _may_be_anybody(self, scope: Scope) -> bool:
        if self._settings.authentication == "none":
            return True
        return not self.is_asked_for and _is_of_this_host(scope)


class Admission:
    """Pure ASGI, behind the guard, before all that answers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        acting = ACTING.set(self._access.admit(scope, Headers(scope=scope)))
        try:
            await self._app(scope, receive, send)
        finally:
            ACTING.reset(acting)


def warnings_of(settings: Api) -> list[str]:
    """Said at the start, and in the status for as long as it is so."""
    if not settings.is_exposed:
        return []
    found = []
    if not settings.has_tls:
        found.append(
            "the API is open to the network without TLS (insecure = true): tokens can be read on the way"
        )
    if settings.authentication == "none":
        found.append("the API is open to the network without authentication (insecure = true)")
    return found


def source_of(scope: Scope) -> str:
    """As the audit names it."""
    if is_unix_socket(scope):
        peer: Peer = scope.get(PEER, _NOBODY)
        return "unix" if peer.process is None else f"unix:pid={peer.process.pid}"
    host, port = (scope.get("client") or ("", 0))[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def group_number(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, OSError):
        return None


def _certified(name: str) -> str:
    """The actor that a certificate shows."""
    return f"certificate:{name}"


def _credential(headers: Headers) -> str | None:
    """Raises NotAuthenticated where it is of another kind, or where there are two: a wrong one is not passed over."""
    sent = set(headers.getlist("x-api-key"))
    for authorization in headers.getlist("authorization"):
        if not authorization.lower().startswith(_SCHEME):
            raise NotAuthenticated("the header Authorization must be: Bearer, and a token", HINT)
        sent.add(authorization[len(_SCHEME) :].strip())
    if len(sent) > 1:
        raise NotAuthenticated("two different tokens were sent", "send one, in Authorization or in X-API-Key")
    return sent.pop() if sent else None


def _is_of_this_host(scope: Scope) -> bool:
    """Both ends are loopback addresses. A proxy on this host makes everybody look so: then authentication must be
    "required"."""
    ends = (scope.get("client"), scope.get("server"))
    return all(end and _is_loopback(end[0]) for end in ends)


@lru_cache(maxsize=1024)
def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _challenge(error: str = "") -> str:
    """RFC 6750, section 3."""
    return 'Bearer realm="ebpf-fw"' + (f', error="{error}"' if error else "")


def _insufficient(identity: Identity, needs: str, scope: Scope) -> RequestRefused:
    return RequestRefused(
        403,
        "insufficient_scope",
        f"{identity.actor} has the scope {identity.scope}; {scope['method']} {scope['path']} needs {needs}",
        f"use a token with the scope {needs}: ebpf-fw token create --scope {needs}",
        headers={"WWW-Authenticate": f'{_challenge("insufficient_scope")}, scope="{needs}"'},
    )
