"""Owns `ebpf-fw analysis`: rules that decide nothing, as the service found them."""

from typing import Annotated

import typer

from cli import output
from cli.session import Session

PAGE_SIZE = 1000


def analysis(
    session: Session,
    page: Annotated[int, typer.Option(min=1, help="Which of the pages.")] = 1,
    page_size: Annotated[int, typer.Option(min=1, max=PAGE_SIZE)] = PAGE_SIZE,
) -> None:
    """Find rules that never decide, that could go without effect, or that match nothing."""
    with session.client() as client:
        found = client.get("/v1/analysis", {"page": page, "page_size": page_size})
    if session.as_json:
        output.json_document(found)
        return
    if found["items"]:
        rows = [(each["id"], each["code"], each["detail"]) for each in found["items"]]
        output.table(("ID", "FINDING", "WHY"), rows, wrapped=("ID", "WHY"))
    count = f"{found['total']:,} finding{'' if found['total'] == 1 else 's'}"
    output.note(
        count if found["total_pages"] < 2 else f"page {found['page']} of {found['total_pages']}, {count}"
    )
