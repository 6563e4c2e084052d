"""Owns what a failure is: problem+json (RFC 9457) and an exit code that scripts depend on."""

from typing import Any

EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_REFUSED, EXIT_EXISTS, EXIT_NOT_FOUND = 1, 2, 3, 4, 11, 12

Json = dict[str, Any]


class Failure(Exception):
    """A command that did not do what it was asked, as problem+json (RFC 9457) and an exit code."""

    def __init__(self, problem: Json, exit_code: int) -> None:
        super().__init__(problem.get("detail") or problem.get("title"))
        self.problem = problem
        self.exit_code = exit_code


def failure(
    exit_code: int,
    code: str,
    title: str,
    detail: str,
    hint: str | None = None,
    errors: list[Json] | None = None,
) -> Failure:
    """A failure that was found here and not by the service, in the same shape as the service's own."""
    problem = {"type": "about:blank", "title": title, "status": None, "detail": detail, "code": code}
    return Failure({**problem, "errors": errors or [], "hint": hint}, exit_code)


def exit_code(status: int, code: str | None) -> int:
    """The exit code of an answer that is an error."""
    if status == 409 and code == "rule_exists":
        return EXIT_EXISTS
    if status == 404:
        return EXIT_NOT_FOUND
    return EXIT_REFUSED if status in (401, 403, 409, 412, 421, 422, 429, 507) else EXIT_FAILED
