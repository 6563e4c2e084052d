"""TLS of the service: the certificate, the clients' authority, and taking newer files without a restart.

Owns what is loaded of the files, and telling that the certificate expires soon. New connections are made with the
newest files that fit together; those that are open stay as they are. Files that do not fit (one of the two was
replaced, the other not yet) change nothing.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import structlog

from api.certificate import expires_at
from firewall.errors import InvalidInput
from firewall.rule import format_time
from firewall.settings import Api

log = structlog.get_logger(__name__)

LOOK_S = 2.0  # between looks whether the files are others
SOON_S = 14 * 86400  # before it expires a certificate is warned about
_WARN_AGAIN_S = 86400.0
_Signature = tuple[tuple[int, int, int, int], ...]


class ServerTls(ssl.SSLContext):
    """What a server is given once: every connection is made by the newest context."""

    _files: tuple[Path, ...]
    _current: ssl.SSLContext
    _loaded: _Signature
    _tried: _Signature
    expires_at: float | None
    _warned_at: float

    def __new__(cls, settings: Api) -> ServerTls:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, settings: Api) -> None:
        """Raises InvalidInput where the files cannot be used."""
        self._settings = settings
        names = (settings.tls_certificate, settings.tls_key, settings.client_ca)
        self._files = tuple(Path(name) for name in names if name)
        try:
            self._loaded = self._tried = self._signature()
            self._current = self._new()
            self._look_when_it_expires()
        except OSError as error:  # ssl.SSLError is one
            raise InvalidInput(
                f"cannot use the certificates ({', '.join(map(str, self._files))}): {_in_words(error)}",
                "see api.tls_certificate, api.tls_key and api.client_ca in the config",
                code="invalid_certificate",
            ) from error

    def wrap_bio(self, *arguments: Any, **keywords: Any) -> ssl.SSLObject:
        return self._current.wrap_bio(*arguments, **keywords)

    def reload(self, is_told: bool = False) -> bool:
        """Takes the files as they are now, where they are others than those that are loaded; whether it did. `is_told`:
        says so also where they are the same."""
        is_new = False
        try:
            signature = self._signature()
            if signature == self._loaded:
                if is_told:
                    log.info("certificates are as they were")
                return False
            is_new, self._tried = signature != self._tried, signature
            context = self._new()
            self._look_when_it_expires()
        except OSError as error:
            if is_told or is_new:
                log.error("the certificates were not read again: the old ones go on", error=_in_words(error))
            return False
        self._current, self._loaded = context, signature
        log.info("certificates read again", files=", ".join(map(str, self._files)))
        return True

    def warnings(self, now: float) -> list[str]:
        """In the status for as long as it is so."""
        if self.expires_at is None or self.expires_at - now >= SOON_S:
            return []
        verb = "expires" if self.expires_at > now else "expired"
        return [f"the certificate {self._files[0]} {verb} at {format_time(self.expires_at)}"]

    def warn(self, now: float) -> None:
        """In the log: once a day, and whenever another certificate was taken."""
        if now - self._warned_at >= _WARN_AGAIN_S:
            for warning in self.warnings(now):
                self._warned_at = now
                log.warning(warning, hint="newer files are taken without a restart")

    def _look_when_it_expires(self) -> None:
        self.expires_at = expires_at(self._files[0].read_text(encoding="ascii", errors="replace"))
        self._warned_at = -_WARN_AGAIN_S

    def _new(self) -> ssl.SSLContext:
        """Raises OSError."""
        settings = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=_no_password)
        if settings.client_ca:
            context.load_verify_locations(settings.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _signature(self) -> _Signature:
        found = (path.stat() for path in self._files)
        return tuple((each.st_dev, each.st_ino, each.st_mtime_ns, each.st_size) for each in found)


def _no_password() -> str:
    """Of a key that is encrypted: instead of asking a terminal that nobody sits at."""
    return ""


def _in_words(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"{error.reason or error}".replace("_", " ").lower()
    return f"{error.filename or 'a file'}: {error.strerror or error}"
