"""Requests made from the OpenAPI document, right ones and wrong ones: no server error, and no answer that the document
does not promise. `make schemathesis` goes on longer, against the real service.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.api.attack import attack
from tests.api.test_server import Service

SECONDS = float(os.environ.get("ATTACK_SECONDS", "30"))


def test_no_request_makes_the_service_break_its_word(tmp_path: Path) -> None:
    service = Service(tmp_path)
    try:
        # The attack makes tokens, and nobody would let it in after the first.
        service.config.write_text(
            service.config.read_text().replace("[api]", '[api]\nauthentication = "none"')
        )
        service.start()
        (port,) = re.findall(r"127\.0\.0\.1:(\d+)", service.log)
        attack(f"http://127.0.0.1:{port}", SECONDS, tmp_path)
        assert service.http.get("/readyz").status_code in (200, 503)
        assert "Traceback" not in service.log
    finally:
        service.close()
