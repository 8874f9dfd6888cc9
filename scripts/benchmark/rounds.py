"""The main run: baselines and the product by turns, A B A B, in rounds.

Each round begins with a fresh copy of the provisioned database and an empty Redis. Deliberately absent:
any reading of the results (see figures.py).
"""

import sqlite3
from contextlib import closing

from lag import Lag
from legs import Legs, say
from postgres import Session, load_pgbench
from product import Server, provision

WORKSPACES = 10_000
CLIENTS = (1, 16, 64, 256)
FULL_LOAD_CLIENTS = 64
GROUPS = ("spread", "hot", "latency", "replicas", "sqlite")
ON_POSTGRES = {"spread", "hot", "latency"}
COUNTS = """
select (select count(*) from commands where command_type = 'DeductCredits' and outcome = 'accepted'),
    (select count(*) from usage_logs)"""


class MainRun:
    def __init__(self, options, cluster, redis, product, folder):
        self.options, self.cluster, self.redis, self.product, self.folder = options, cluster, redis, product, folder
        self.legs = Legs(options, cluster, redis, product, folder)
        self.checks = {}
        self.spread_file, self.hot_file = folder / "spread", folder / "hot"

    def measure(self):
        chosen = self.options.only
        if chosen & ON_POSTGRES:
            self.prepare_pgbench()
        if chosen & (ON_POSTGRES | {"replicas"}):
            self.provision("provisioned", {"DATABASE_URL": self.cluster.create("provisioned")})
        if chosen & ON_POSTGRES:
            for _ in self.rounds("pgbench and PostgreSQL"):
                self.postgres_round(chosen)
        if "replicas" in chosen:
            self.replicas()
        if "sqlite" in chosen:
            self.sqlite()
        return {"legs": self.legs.found, "checks": self.checks}

    def rounds(self, what):
        for self.legs.round in range(1, self.options.rounds + 1):
            say(f"round {self.legs.round} of {self.options.rounds}: {what}")
            yield

    def prepare_pgbench(self):
        say(f"pgbench: loading scale {self.options.scale} and scale 1")
        self.pgbench_spread, self.pgbench_hot = self.cluster.create("tpcb"), self.cluster.create("tpcb_hot")
        load_pgbench(self.pgbench_spread, self.options.scale)
        load_pgbench(self.pgbench_hot, 1)

    def provision(self, name, settings):
        """Makes the workspaces; without Redis, so that their events wait for whoever has one."""
        server = Server(self.product, name, settings)
        try:
            ids = provision(server, self.legs.token, WORKSPACES)
        finally:
            server.stop()
        self.spread_file.write_text("\n".join(ids) + "\n")
        self.hot_file.write_text(ids[0] + "\n")

    def fresh_settings(self, name):
        """A copy of the provisioned database, a Redis that has its events, and nothing counted yet."""
        self.redis.empty()
        self.legs.count_anew()
        settings = {"DATABASE_URL": self.cluster.create(name, template="provisioned"), "REDIS_URL": self.redis.url}
        server = Server(self.product, "publisher", settings)
        try:
            with closing(Lag(settings["DATABASE_URL"])) as lag:
                lag.drained_within_ms()
        finally:
            server.stop()
        return settings

    def postgres_round(self, chosen):
        name = f"round_{self.legs.round}"
        settings = self.fresh_settings(name)
        for clients in CLIENTS:
            if ("spread" if clients == FULL_LOAD_CLIENTS else "latency") in chosen:
                self.legs.pgbench("pgbench", self.pgbench_spread, clients)
                self.legs.product("spread", settings, self.spread_file, [clients])
        if "hot" in chosen:
            self.legs.pgbench("pgbench-hot", self.pgbench_hot, FULL_LOAD_CLIENTS)
            self.legs.product("hot", settings, self.hot_file, [FULL_LOAD_CLIENTS])
        self.count(name, settings)
        self.cluster.drop(name)

    def count(self, name, settings):
        with closing(Session(settings["DATABASE_URL"])) as session:
            commands, usage_logs = session.rows(COUNTS)[0]
        self.legs.check(name, int(commands), int(usage_logs))

    def replicas(self):
        """One replica and two by turns on one database; afterwards everything must still be right."""
        settings = self.fresh_settings("replicated")
        for _ in self.rounds("one replica and two"):
            self.legs.product("one-replica", settings, self.spread_file, [FULL_LOAD_CLIENTS])
            self.legs.product("two-replicas", settings, self.spread_file, [FULL_LOAD_CLIENTS // 2] * 2)
        self.count("replicas", settings)
        # Both end with an error when they find anything, and so does the run then.
        for words in (["verify"], ["outbox", "verify"]):
            verdict = self.product.command(*words, settings=settings).strip().splitlines()[-1]
            self.checks[" ".join(words)] = verdict
            say(f"  visionscope {' '.join(words)}: {verdict}")
        self.cluster.drop("replicated")
        self.redis.empty()

    def sqlite(self):
        path = self.folder / "embedded.db"
        settings = {"VISIONSCOPE__DATABASE__PATH": str(path)}
        self.provision("embedded", settings)
        self.legs.count_anew()
        for _ in self.rounds("SQLite"):
            for name, ids_file in (("sqlite-spread", self.spread_file), ("sqlite-hot", self.hot_file)):
                self.legs.sqlite_baselines()
                self.legs.product(name, settings, ids_file, [FULL_LOAD_CLIENTS])
        with closing(sqlite3.connect(path)) as connection:
            self.legs.check("SQLite", *connection.execute(COUNTS).fetchone())
