"""Tokens: what is kept of one, how it is checked, and that making and revoking are durable."""

from __future__ import annotations

import hashlib
import hmac
import re
import sqlite3

import pytest

from firewall.errors import AlreadyExists, Conflict, NotAuthenticated, NotFound, StoreFailed
from firewall.tokens import USED_WITHIN_S, digest_of, new_text
from tests.unit.failing_database import fail_on
from tests.unit.host import Host


def made(host: Host, name: str = "ci", scope: str = "rules", expires_at: float | None = None) -> str:
    return host.firewall.create_token(name, scope, expires_at).text


def refused(host: Host, text: str) -> str:
    with pytest.raises(NotAuthenticated) as raised:
        host.firewall.token_of(text)
    return raised.value.code


def test_a_token_has_a_prefix_a_public_id_and_256_random_bits() -> None:
    texts = {new_text() for _ in range(100)}
    assert len({text for text, _ in texts}) == 100
    for text, public_id in texts:
        assert re.fullmatch(rf"efw_{public_id}_[0-9a-f]{{64}}", text)


def test_only_a_digest_of_it_is_stored(host: Host) -> None:
    text = made(host)
    assert digest_of(text) == hashlib.sha256(text.encode()).digest()
    stored = host.stored()
    assert text not in stored and text[-64:] not in stored and digest_of(text).hex().upper() in stored


def test_it_is_known_again_also_after_a_restart(host: Host) -> None:
    text = made(host)
    host.stop()
    host.start()
    token = host.firewall.token_of(text)
    assert (token.name, token.scope, token.created_by, token.created_at) == (
        "ci",
        "rules",
        "service",
        host.now,
    )


def test_digests_are_compared_in_constant_time_whether_there_is_such_a_token_or_not(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = made(host)
    compared: list[tuple[bytes, bytes]] = []

    def counted(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", counted)
    host.firewall.token_of(text)
    for wrong in (
        f"{text[:-1]}{'0' if text[-1] != '0' else '1'}",
        new_text()[0],
        "nonsense",
        "",
        "efw_ü\udcff",
    ):
        refused(host, wrong)
    assert len(compared) == 6 and all(len(one) == len(other) == 32 for one, other in compared)


def test_a_wrong_secret_of_a_known_id_is_refused(host: Host) -> None:
    text, other = made(host), made(host, "other")
    assert refused(host, text[:17] + other[17:]) == "invalid_token"
    assert refused(host, text.upper()) == "invalid_token"
    assert refused(host, f"{text} ") == "invalid_token"


def test_an_expired_token_is_refused_and_says_so_and_stays_in_the_list(host: Host) -> None:
    text = made(host, expires_at=host.now + 10)
    host.firewall.token_of(text)
    token = host.firewall.token_of(text)
    host.now += 10
    assert refused(host, text) == "token_expired"
    assert not host.firewall.is_in_force(token)
    assert [each.name for each in host.firewall.tokens.all()] == ["ci"]


def test_a_revoked_token_is_refused_at_once_and_after_a_restart(host: Host) -> None:
    text = made(host)
    token = host.firewall.token_of(text)
    host.firewall.revoke_token("ci")
    assert refused(host, text) == "invalid_token" and not host.firewall.is_in_force(token)
    host.stop()
    host.start()
    assert refused(host, text) == "invalid_token"
    with pytest.raises(NotFound):
        host.firewall.revoke_token("ci")


def test_that_there_was_a_token_is_remembered_when_the_last_is_revoked(host: Host) -> None:
    assert not host.firewall.has_had_tokens
    made(host)
    host.firewall.revoke_token("ci")
    assert host.firewall.has_had_tokens
    host.stop()
    assert host.start().has_had_tokens


def test_a_name_is_taken_until_its_token_is_revoked(host: Host) -> None:
    made(host)
    with pytest.raises(AlreadyExists) as raised:
        made(host)
    assert raised.value.code == "token_exists"
    host.firewall.revoke_token("ci")
    made(host)


def test_without_a_name_it_gets_one(host: Host) -> None:
    new = host.firewall.create_token(None, "read", None)
    assert new.token.name == f"token-{new.token.public_id}"


def test_there_is_an_end_to_their_number(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firewall.token_changes.MOST_TOKENS", 2)
    made(host, "a")
    made(host, "b")
    with pytest.raises(Conflict) as raised:
        made(host, "c")
    assert raised.value.code == "too_many_tokens"


@pytest.mark.parametrize("statement", ["INSERT INTO tokens", "INSERT INTO audit", "COMMIT"])
def test_a_token_that_is_not_durable_is_none(host: Host, statement: str) -> None:
    before = host.stored()
    with fail_on(host.firewall._store, statement), pytest.raises(StoreFailed):
        made(host)
    assert host.firewall.tokens.all() == [] and not host.firewall.has_had_tokens
    assert host.stored() == before


def test_a_token_whose_revocation_is_not_durable_stays(host: Host) -> None:
    text = made(host)
    with fail_on(host.firewall._store, "COMMIT"), pytest.raises(StoreFailed):
        host.firewall.revoke_token("ci")
    host.firewall.token_of(text)


# -- when they were used


def last_used(host: Host, name: str = "ci") -> float | None:
    token = host.firewall.tokens.named(name)
    assert token is not None
    return host.firewall.last_used(token)


def test_a_token_tells_to_the_minute_when_it_was_last_used(host: Host) -> None:
    text, _ = made(host), made(host, "other")
    assert last_used(host) is None and not host.firewall.uses_to_save()
    refused(host, text[:17] + new_text()[0][17:])
    assert last_used(host) is None, "somebody else used its public id"
    first = host.now
    host.firewall.token_of(text)
    assert last_used(host) == first and last_used(host, "other") is None
    host.now += USED_WITHIN_S - 1
    host.firewall.token_of(text)
    assert last_used(host) == first
    host.now += 1
    host.firewall.token_of(text)
    assert last_used(host) == first + USED_WITHIN_S


def test_what_is_saved_survives_a_crash_and_all_of_it_a_stop(host: Host) -> None:
    text = made(host)
    host.firewall.token_of(text)
    saved = host.now
    host.firewall.save_uses()
    assert not host.firewall.uses_to_save()
    with fail_on(host.firewall._store, "UPDATE tokens"):
        host.firewall.save_uses()  # nothing is due, so nothing is written
    host.now += USED_WITHIN_S
    host.firewall.token_of(text)
    assert f"{saved}" in host.stored() and f"{host.now}" not in host.stored()
    host.stop()
    host.start()
    assert last_used(host) == host.now


@pytest.mark.parametrize("statement", ["UPDATE tokens", "COMMIT"])
def test_what_could_not_be_saved_is_saved_the_next_time(host: Host, statement: str) -> None:
    host.firewall.token_of(made(host))
    with fail_on(host.firewall._store, statement), pytest.raises(StoreFailed):
        host.firewall.save_uses()
    assert host.firewall.uses_to_save()
    host.firewall.save_uses()
    assert not host.firewall.uses_to_save() and f"{host.now}" in host.stored()


def test_a_new_token_of_the_same_name_was_never_used(host: Host) -> None:
    host.firewall.token_of(made(host))
    host.firewall.save_uses()
    host.firewall.revoke_token("ci")
    made(host)
    assert last_used(host) is None and not host.firewall.uses_to_save()


def test_a_database_that_knows_tokens_and_no_uses_is_taken_over(host: Host) -> None:
    text = made(host)
    host.stop()
    with sqlite3.connect(host.database) as older:
        older.executescript("ALTER TABLE tokens DROP COLUMN last_used_at; PRAGMA user_version = 5;")
    older.close()
    host.start()
    assert last_used(host) is None
    host.firewall.token_of(text)
    host.firewall.save_uses()
    assert last_used(host) == host.now and not host.firewall.uses_to_save()
