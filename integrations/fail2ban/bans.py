#!/usr/bin/python3
"""Prints the bans of a fail2ban jail as NDJSON, for `ebpf-fw set import`: bans.py JAIL DATABASE.

Owns reading fail2ban's database, which it never writes. Needs nothing but Python. Fails, so that nothing is replaced,
where the database cannot be read.
"""

import json
import sqlite3
import sys
import time
from pathlib import Path


def bans(jail, database, now):
    """Address and seconds that are left, None for ever."""
    uri = Path(database).resolve().as_uri() + "?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=10)
    try:
        # bips has the last ban of each address, since fail2ban 0.11.
        rows = connection.execute(
            "SELECT ip, timeofban, bantime FROM bips WHERE jail = ?", (jail,)
        ).fetchall()
    finally:
        connection.close()
    for address, since, lasts in rows:
        if lasts < 0:
            yield address, None
        elif since + lasts > now:
            yield address, int(since + lasts - now) + 1


def main(arguments):
    if len(arguments) != 2:
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 2
    jail, database = arguments
    try:
        found = list(bans(jail, database, time.time()))
    except (sqlite3.Error, OSError) as error:
        print(f"{database}: {error}", file=sys.stderr)
        return 1
    for address, left in found:
        entry = {"address": address, "comment": f"fail2ban: jail {jail}, restored"}
        if left is not None:
            entry["ttl"] = left
        print(json.dumps(entry))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
