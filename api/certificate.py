"""When certificates expire, read from their DER (X.690; RFC 5280, section 4.1): Python's ssl tells it of a peer's only.

Owns that reading. Whether a certificate is any good is not asked here: ssl has taken it.
"""

from __future__ import annotations

import calendar
import re
import ssl
import time

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x17, 0x18, 0xA0
_FORMS = {_UTC_TIME: "%y%m%d%H%M%SZ", _GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}


def expires_at(pem: str) -> float | None:
    """The first moment at which one of the certificates in a PEM text is over, in seconds since 1970; None where there
    is none that can be read."""
    try:
        ends = [_not_after(ssl.PEM_cert_to_DER_cert(each)) for each in _PEM.findall(pem)]
    except (ValueError, IndexError):
        return None
    return min(ends, default=None)


def _not_after(der: bytes) -> float:
    """Raises ValueError or IndexError."""
    certificate, _ = _content(der, 0)
    tbs, _ = _content(der, certificate)
    _, at = _content(der, tbs) if der[tbs] == _VERSION else (0, tbs)
    for _ in range(3):  # serial number, algorithm, issuer
        _, at = _content(der, at)
    not_before, _ = _content(der, at)
    _, not_after = _content(der, not_before)
    text, end = _content(der, not_after)
    moment = time.strptime(der[text:end].decode("ascii"), _FORMS.get(der[not_after], ""))
    return float(calendar.timegm(moment))


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Of the value at `at`: where its content begins, and where the next value does."""
    length, begin = der[at + 1], at + 2
    if length & 0x80:
        octets = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + octets], "big"), begin + octets
    return begin, begin + length
