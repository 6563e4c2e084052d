"""schemathesis against a running service: requests made from its OpenAPI document, right ones and wrong ones, alone
and in the order in which the document links them.

Owns which checks count. It must not know what runs behind the address.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("FUZZ_SEED", "1"))
OPERATIONS = 30  # at least, so that a run that tried nothing is none
# Left out, because they would be wrong: positive_data_acceptance (a rule's fields must fit together, which no schema
# says: ICMP types with TCP ports), use_after_free and ensure_resource_availability (a dry run deletes nothing, an
# unconfirmed change is taken back, a ttl ends), allow_header_conformance (a rule may be named "import", so
# /v1/rules/import takes GET as well and says so).
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "missing_required_header", "unsupported_method",
)  # fmt: skip


def attack(url: str, seconds: float, directory: Path, *before: str) -> None:
    """Fails with what schemathesis says, which is how to repeat it too. `directory`: where it may write; `before`: a
    command that runs it, such as `ip netns exec NS`."""
    command = [
        *before, str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json",
        "--checks", ",".join(CHECKS), "--max-time", str(round(seconds)), "--seed", str(SEED),
        "--request-timeout", "30", "--no-color", "--warnings", "off",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "tests.api.schemathesis_hooks",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    operations = re.search(r"Tested: +(\d+)", done.stdout)
    requests = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert operations and int(operations[1]) >= OPERATIONS, done.stdout
    assert requests and requests[1] == requests[2], done.stdout
    print(f"{requests[1]} requests to {operations[1]} operations, seed {SEED}")
