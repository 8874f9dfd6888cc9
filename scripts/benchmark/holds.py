"""The holds run: deductions, holds of the same size, and captures of those holds, by turns on one database.

Each is sent to 10,000 workspaces, the holds and the deductions at random. A capture names its hold, so each is sent once.
Absent on purpose: Redis, so that events wait; and a workspace with many open holds (see ADR 20).
"""

import secrets
import sqlite3
from contextlib import closing
from uuid import UUID

from rounds import CLIENTS, WORKSPACES, tuned
from servers import cluster, psql

PARTS = ("postgres", "sqlite")
DEDUCTIONS, HOLDS, CAPTURES = "deductions", "holds", "captures of them"
MOST_PER_S = 6000  # captures
OPEN = "select workspace_id, hold_id from credit_holds where state = 'open'"


def measure(legs):
    found = {"postgres": {}, "checks": {}}
    if "postgres" in legs.options.only:
        with cluster(tuned()) as legs.cluster:
            found["postgres"]["tuned"] = legs.cluster.settings
            url = legs.cluster.create("product")
            by_turns(legs, "PostgreSQL", {"DATABASE_URL": url}, lambda: psql(url, OPEN))
        legs.cluster = None
    if "sqlite" in legs.options.only:
        path = str(legs.folder / "holds.db")
        by_turns(legs, "SQLite", {"VISIONSCOPE__DATABASE__PATH": path}, lambda: open_holds(path))
    return found


def open_holds(path):
    with closing(sqlite3.connect(path)) as connection:
        return [tuple(str(UUID(bytes=id)) for id in row) for row in connection.execute(OPEN)]


def by_turns(legs, database, settings, holds):
    ids = legs.product.provision(settings, WORKSPACES)
    deductions = legs.deductions_file("deductions", ids)
    placing = legs.lines_file("holds", [f"/v1/workspaces/{id}/holds" for id in ids])
    for _ in legs.rounds(f"deductions, holds and captures on {database}"):
        with legs.product.server(settings) as server:
            legs.warm_up([server], deductions)
            send = lambda seconds, paths, *first: legs.wrk(
                seconds, (server[1], CLIENTS, paths, secrets.token_hex(8), *first))
            legs.record(f"{DEDUCTIONS}, {database}", CLIENTS, send(legs.options.seconds, deductions))
            legs.record(f"{HOLDS}, {database}", CLIENTS, send(legs.options.seconds, placing))
            paths = [f"/v1/workspaces/{workspace}/holds/{hold}/capture" for workspace, hold in holds()]
            # It ends before the list does, or a hold would be captured twice, which is refused.
            seconds = max(1, min(legs.options.seconds, len(paths) // MOST_PER_S))
            legs.record(f"{CAPTURES}, {database}", CLIENTS, send(seconds, legs.lines_file("captures", paths), "1"))
