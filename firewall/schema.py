"""The schema of the database, as the steps that led to it.

Owns the order of the steps. Step n brings a database of version n to version n + 1, and is never changed once it was
released: a new table or column is a new step at the end. Each step is one transaction.
"""

from __future__ import annotations

import sqlite3

_FIRST = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE rules (
    handle INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    fields TEXT NOT NULL,          -- JSON, what differs from the defaults
    direction TEXT NOT NULL,
    action TEXT NOT NULL,
    enabled INTEGER NOT NULL,
    created_at REAL NOT NULL,      -- times: seconds since 1970, UTC
    updated_at REAL NOT NULL,
    expires_at REAL
);
CREATE INDEX rules_by_expiry ON rules (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE blocks (                 -- imported address rules: first_handle + n is the handle of the n-th
    first_handle INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    uid TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,      -- 4 or 6
    action TEXT NOT NULL,
    priority INTEGER NOT NULL,
    direction TEXT NOT NULL,
    created_at REAL NOT NULL,
    lengths BLOB NOT NULL,         -- a byte each
    addresses BLOB NOT NULL        -- 4 or 16 bytes each, network order
);
CREATE TABLE gone (handle INTEGER PRIMARY KEY);  -- of blocks: deleted since, or a row of rules by now
CREATE TABLE hits (handle INTEGER PRIMARY KEY, packets INTEGER, bytes INTEGER, last_hit REAL);
CREATE TABLE interface_hits (
    interface TEXT, hook INTEGER, verdict INTEGER, reason INTEGER, packets INTEGER, bytes INTEGER,
    PRIMARY KEY (interface, hook, verdict, reason)
) WITHOUT ROWID;
CREATE TABLE interfaces (
    name TEXT PRIMARY KEY, attach INTEGER NOT NULL, mode TEXT NOT NULL,
    ingress INTEGER NOT NULL, egress INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO meta VALUES ('identity', lower(hex(randomblob(4)))), ('revision', 0), ('next_handle', 1);
"""

# What is subtracted from a rule's counters: what they were when somebody reset them.
# And what the metrics ask for, so that no scrape looks at every rule (firewall/store.py asks in the same words).
_COUNTS = """
CREATE TABLE resets (handle INTEGER PRIMARY KEY, packets INTEGER, bytes INTEGER, at REAL);
CREATE INDEX rules_disabled ON rules (handle) WHERE NOT enabled;
CREATE INDEX rules_measured ON rules (handle) WHERE instr(fields, '"metrics":"true"') > 0;
"""

# Changes that wait for their confirmation (docs/adr/0011), the last that ended, and what takes each back.
_UNDO = """
CREATE TABLE changes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    what TEXT NOT NULL,
    made_at REAL NOT NULL,
    deadline REAL NOT NULL,        -- for people: seconds since 1970
    due REAL NOT NULL,             -- for us: CLOCK_MONOTONIC of this boot
    boot TEXT NOT NULL,
    added INTEGER NOT NULL, removed INTEGER NOT NULL, changed INTEGER NOT NULL,
    state TEXT NOT NULL,           -- pending, confirmed, rolled_back
    reason TEXT NOT NULL,
    ended_at REAL
);
CREATE INDEX changes_pending ON changes (state) WHERE state = 'pending';
CREATE TABLE undo_rules (              -- rows of rules as they were before the change
    change INTEGER NOT NULL, handle INTEGER NOT NULL, id TEXT NOT NULL, fields TEXT NOT NULL, direction TEXT NOT NULL,
    action TEXT NOT NULL, enabled INTEGER NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL, expires_at REAL,
    PRIMARY KEY (change, handle)
) WITHOUT ROWID;
CREATE TABLE undo_ranges (             -- of handles, the last one past the end
    change INTEGER NOT NULL,
    kind TEXT NOT NULL,            -- added: were not there; imported: a block that was not; gone: of blocks, were there
    first INTEGER NOT NULL, past INTEGER NOT NULL,
    PRIMARY KEY (change, kind, first)
) WITHOUT ROWID;
CREATE TABLE undo_interfaces (         -- requests as they were; attach NULL: there was none
    change INTEGER NOT NULL, name TEXT NOT NULL,
    attach INTEGER, mode TEXT, ingress INTEGER, egress INTEGER,
    PRIMARY KEY (change, name)
) WITHOUT ROWID;
"""

# Sets, and what takes a change of one back: all of it as it was.
_SETS = """
CREATE TABLE sets (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    source TEXT NOT NULL,          -- who fills it: api, or the owner of a managed set
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL
);
CREATE TABLE set_entries (
    number INTEGER NOT NULL,       -- of the set
    key BLOB NOT NULL,             -- version, address in network order, prefix length
    expires_at REAL,
    comment TEXT,
    created_at REAL NOT NULL,
    updated_at REAL,               -- NULL: since it was created
    PRIMARY KEY (number, key)
) WITHOUT ROWID;
CREATE INDEX set_entries_by_expiry ON set_entries (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE undo_sets (               -- description NULL: there was no such set
    change INTEGER NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL, description TEXT, source TEXT,
    created_at REAL, updated_at REAL,
    PRIMARY KEY (change, number)
) WITHOUT ROWID;
CREATE TABLE undo_set_entries (
    change INTEGER NOT NULL, number INTEGER NOT NULL, key BLOB NOT NULL, expires_at REAL, comment TEXT,
    created_at REAL NOT NULL, updated_at REAL,
    PRIMARY KEY (change, number, key)
) WITHOUT ROWID;
"""

# Who may use the API, and who changed what (docs/adr/0017). An entry of the audit is never changed, and deleted only
# when it is older than what is kept: up to the id that meta names for its kind.
_ACCESS = """
CREATE TABLE tokens (
    name TEXT PRIMARY KEY,
    public_id TEXT NOT NULL UNIQUE,
    digest BLOB NOT NULL,          -- SHA-256 of the whole token, which is kept nowhere
    scope TEXT NOT NULL,           -- read, rules, admin
    created_at REAL NOT NULL,
    created_by TEXT NOT NULL,
    expires_at REAL
) WITHOUT ROWID;
CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    kind TEXT NOT NULL,            -- change, access
    actor TEXT NOT NULL, source TEXT NOT NULL, request_id TEXT NOT NULL, call TEXT NOT NULL, reason TEXT NOT NULL,
    action TEXT NOT NULL, target TEXT NOT NULL,
    before TEXT, after TEXT, summary TEXT  -- JSON
);
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'an entry of the audit is never changed');
END;
CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit
WHEN old.id > coalesce((SELECT value FROM meta WHERE key = 'audit_floor_' || old.kind), 0) BEGIN
    SELECT RAISE(ABORT, 'an entry of the audit that is kept is never deleted');
END;
"""

# To the minute, written now and then.
_USES = """
ALTER TABLE tokens ADD COLUMN last_used_at REAL;
"""

STEPS = (_FIRST, _COUNTS, _UNDO, _SETS, _ACCESS, _USES)
VERSION = len(STEPS)


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """From `version` to the newest."""
    for number, step in enumerate(STEPS[version:], start=version + 1):
        connection.executescript(f"BEGIN; {step} PRAGMA user_version = {number}; COMMIT;")
