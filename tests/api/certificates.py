"""Certificates for tests: an authority that lives as long as a test, what it signs, as files."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import trustme


class Authority:
    """Files below `directory`."""

    def __init__(self, directory: Path, name: str) -> None:
        self._ca = trustme.CA(organization_name=name)
        self._directory = directory
        self.pem = directory / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.pem))

    def write_server(
        self, certificate: Path, key: Path, *names: str, not_after: datetime | None = None
    ) -> None:
        """In the place of what is there, the two one after the other, as tools do."""
        signed = self._ca.issue_cert(*names, not_after=not_after)
        for path, content in (
            (key, signed.private_key_pem.bytes()),
            (certificate, b"".join(each.bytes() for each in signed.cert_chain_pems)),
        ):
            new = path.with_suffix(".new")
            new.write_bytes(content)
            new.replace(path)

    def client(self, name: str) -> tuple[str, str]:
        """Certificate and key with that common name."""
        signed = self._ca.issue_cert(common_name=name)
        certificate, key = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        signed.cert_chain_pems[0].write_to_path(str(certificate))
        signed.private_key_pem.write_to_path(str(key))
        return str(certificate), str(key)
