"""The main run: baselines and the product by turns, in rounds.

On PostgreSQL as it comes, then on a PostgreSQL that is tuned for such a load, and on SQLite. Every round begins with
fresh copies of the databases. Absent on purpose: any reading of the results (see report.py).
"""

import os
import sqlite3
from contextlib import closing

from legs import HERE, STORED, drain
from servers import cluster, psql, run

WORKSPACES = 10_000
ONE, CLIENTS, MANY = 1, 64, 256
PARTS = ("untuned", "spread", "hot", "replicas", "sqlite")
UNTUNED = " (as it comes)"  # at the end of the names of loads on PostgreSQL as it comes
TPCB, TPCB_HOT, CAREFUL = "TPC-B", "TPC-B at scale 1", "careful team"
SPREAD, HOT, ONE_REPLICA, TWO_REPLICAS = "10,000 workspaces", "one workspace", "one replica", "two replicas"
SQLITE, SQLITE_SPREAD, SQLITE_HOT = "SQLite, a transaction each", "SQLite, 10,000 workspaces", "SQLite, one workspace"
DATABASES = {TPCB: "tpcb", TPCB_HOT: "tpcb_hot"}


def tuned():
    """What an operator sets for such a load, for both sides. No wal_compression: it slows only pgbench."""
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {"shared_buffers": f"{memory_mb // 4}MB", "max_wal_size": "16GB", "min_wal_size": "4GB",
            "checkpoint_timeout": "15min"}


def measure(legs):
    """Runs the chosen parts, and returns what is not in the legs: settings, and what `visionscope` found."""
    chosen, found = legs.options.only, {"postgres": {}, "checks": {}}
    if "untuned" in chosen:
        with cluster({}) as legs.cluster:
            found["postgres"]["as it comes"] = legs.cluster.settings
            prepare(legs)
            on_postgres(legs, UNTUNED, [(TPCB, CLIENTS), (CAREFUL, CLIENTS), (SPREAD, CLIENTS)])
    if chosen & {"spread", "hot", "replicas"}:
        with cluster(tuned()) as legs.cluster:
            found["postgres"]["tuned"] = legs.cluster.settings
            prepare(legs)
            if "spread" in chosen:
                on_postgres(legs, "", [(TPCB, ONE), (SPREAD, ONE), (TPCB, CLIENTS), (CAREFUL, CLIENTS),
                                       (SPREAD, CLIENTS), (TPCB, MANY), (SPREAD, MANY)])
            if "hot" in chosen:
                on_postgres(legs, "", [(TPCB_HOT, CLIENTS), (HOT, CLIENTS)])
            if "replicas" in chosen:
                found["checks"] = replicas(legs)
    legs.cluster = None
    if "sqlite" in chosen:
        on_sqlite(legs)
    return found


def prepare(legs):
    """Fills the databases of the baselines, and makes the workspaces, without Redis: their events wait."""
    print(f"preparing: pgbench at scales {legs.options.scale} and 1, and {WORKSPACES:,} workspaces")
    for load, scale in ((TPCB, legs.options.scale), (TPCB_HOT, 1)):
        run(["pgbench", "-i", "-q", "-s", str(scale), legs.cluster.create(DATABASES[load])])
    run(["psql", "-Xq", "-f", HERE / "careful_tables.sql", legs.cluster.create("careful")])
    ids = legs.product.provision({"DATABASE_URL": legs.cluster.create("product")}, WORKSPACES)
    legs.paths = {SPREAD: legs.deductions_file("spread", ids), HOT: legs.deductions_file("hot", ids[:1])}


def fresh_product(legs, name):
    """The addresses of a copy of the product's database and of a Redis with its events. Nothing is counted yet."""
    legs.cluster.redis("flushall")
    legs.count_anew()
    settings = {"DATABASE_URL": legs.cluster.create(name, template="product"), "REDIS_URL": legs.cluster.redis_url}
    with legs.product.server(settings):
        drain(settings["DATABASE_URL"])
    return settings


def on_postgres(legs, suffix, loads):
    for _ in legs.rounds(f"PostgreSQL{suffix or ' (tuned)'}"):
        settings = fresh_product(legs, "ours")
        careful = legs.cluster.create("careful_copy", template="careful")
        for load, clients in loads:
            if load in DATABASES:
                legs.pgbench(load + suffix, legs.cluster.url(DATABASES[load]), clients)
            elif load == CAREFUL:
                legs.pgbench(load + suffix, careful, clients, "-n", "-f", str(HERE / "careful_transaction.sql"))
            else:
                legs.deduct(load + suffix, settings, legs.paths[load], [clients])
        legs.check_stored(psql(settings["DATABASE_URL"], STORED)[0])
        legs.cluster.sql("drop database ours")
        legs.cluster.sql("drop database careful_copy")


def replicas(legs):
    """One replica and two by turns on one database. Everything must still be right at the end."""
    settings = fresh_product(legs, "replicated")
    for _ in legs.rounds("one replica and two"):
        legs.deduct(ONE_REPLICA, settings, legs.paths[SPREAD], [CLIENTS])
        legs.deduct(TWO_REPLICAS, settings, legs.paths[SPREAD], [CLIENTS // 2] * 2)
    legs.check_stored(psql(settings["DATABASE_URL"], STORED)[0])
    # Both end with an error if anything is wrong, and then this run does too.
    return {words: legs.product.command(*words.split(), settings=settings) for words in ("verify", "outbox verify")}


def on_sqlite(legs):
    path = str(legs.folder / "embedded.db")
    settings = {"VISIONSCOPE__DATABASE__PATH": path}
    ids = legs.product.provision(settings, WORKSPACES)
    paths = {SQLITE_SPREAD: legs.deductions_file("spread", ids), SQLITE_HOT: legs.deductions_file("hot", ids[:1])}
    legs.count_anew()
    for _ in legs.rounds("SQLite"):
        for load in paths:
            legs.sqlite_baseline(SQLITE)
            legs.deduct(load, settings, paths[load], [CLIENTS])
    with closing(sqlite3.connect(path)) as connection:
        legs.check_stored(connection.execute(STORED).fetchone())
