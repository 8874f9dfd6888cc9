"""The main run: baselines and the product by turns, A B A B, in rounds.

A leg is one load for some seconds. Each leg of the product has a server process of its own, so that
nothing of it runs beside a baseline; each round begins with a fresh copy of the provisioned database
and an empty Redis. What is measured of a leg: answers per second, percentiles, processor time of
everybody, memory, and the publisher's lag. Processor time is counted until the last event is
published. Deliberately absent: any reading of the results (see figures.py).
"""

import sqlite3
import time

from lag import Lag
from load import deduct, generator_cpu_s
from postgres import load_pgbench, run_pgbench
from processes import Failure, await_that
from product import Server, provision
from sqlite_baseline import run_sqlite

WORKSPACES = 10_000
CLIENTS = (1, 16, 64, 256)
FULL_LOAD_CLIENTS = 64
IDLE_S = 5
REWRITE_TIMEOUT_S = 120
GROUPS = ("spread", "hot", "latency", "replicas", "sqlite")


def say(text):
    print(text, flush=True)


class MainRun:
    """What the legs share, and what they found."""

    def __init__(self, options, cluster, redis, product, folder):
        self.options, self.cluster, self.redis, self.product, self.folder = options, cluster, redis, product, folder
        self.legs = []
        self.answered = self.unanswered = 0
        self.checks = {}
        self.round = 0
        self.token_file = folder / "token"
        self.token_file.write_text(product.token() + "\n")
        self.spread_file, self.hot_file = folder / "spread", folder / "hot"

    def measure(self):
        chosen = self.options.only
        if chosen & {"spread", "hot", "latency"}:
            self.prepare_pgbench()
        if chosen & {"spread", "hot", "latency", "replicas"}:
            self.provision("provisioned", {"DATABASE_URL": self.cluster.create("provisioned")})
        for self.round in range(1, self.options.rounds + 1):
            if chosen & {"spread", "hot", "latency"}:
                say(f"round {self.round} of {self.options.rounds}: PostgreSQL")
                self.postgres_round(chosen)
        if "replicas" in chosen:
            self.replicas()
        if "sqlite" in chosen:
            self.sqlite()
        return {"legs": self.legs, "checks": self.checks}

    def prepare_pgbench(self):
        say(f"pgbench: loading scale {self.options.scale} and scale 1")
        self.pgbench_spread, self.pgbench_hot = self.cluster.create("tpcb"), self.cluster.create("tpcb_hot")
        load_pgbench(self.pgbench_spread, self.options.scale)
        load_pgbench(self.pgbench_hot, 1)

    def provision(self, name, settings):
        """Makes the workspaces; without Redis, so that their events wait for whoever has one."""
        say(f"{name}: {WORKSPACES} workspaces")
        server = Server(self.product, name, settings)
        try:
            ids = provision(server, self.token_file.read_text().strip(), WORKSPACES)
        finally:
            server.stop()
        self.spread_file.write_text("\n".join(ids) + "\n")
        self.hot_file.write_text(ids[0] + "\n")

    def postgres_round(self, chosen):
        url = self.fresh_database(f"round_{self.round}")
        settings = {"DATABASE_URL": url, "REDIS_URL": self.redis.url}
        lag = Lag(url)
        try:
            for clients in CLIENTS:
                if ("spread" if clients == FULL_LOAD_CLIENTS else "latency") in chosen:
                    self.pgbench_leg("pgbench", self.pgbench_spread, clients)
                    self.product_leg("spread", settings, lag, [clients])
            if "hot" in chosen:
                self.pgbench_leg("pgbench-hot", self.pgbench_hot, FULL_LOAD_CLIENTS)
                self.product_leg("hot", settings, lag, [FULL_LOAD_CLIENTS])
            found = int(lag.session.value("select count(*) from commands where command_type = 'DeductCredits' and outcome = 'accepted'"))
            logs = int(lag.session.value("select count(*) from usage_logs"))
            self.check_deductions(f"round {self.round}", found, logs)
        finally:
            lag.close()
        self.cluster.drop(f"round_{self.round}")

    def fresh_database(self, name):
        self.redis.empty()
        self.answered = self.unanswered = 0
        return self.cluster.create(name, template="provisioned")

    def check_deductions(self, name, found, logs):
        """Every answered deduction is there, and no more than were under way when a load ended."""
        if not self.answered <= found <= self.answered + self.unanswered or found != logs:
            raise Failure(f"{name}: {self.answered} deductions were answered, {found} are stored, {logs} usage logs")

    def pgbench_leg(self, name, url, clients):
        run_pgbench(url, clients, self.options.warm_up_s)
        before = {"database": self.cluster.cpu_s(), "generator": generator_cpu_s()}
        result = run_pgbench(url, clients, self.options.seconds)
        after = {"database": self.cluster.cpu_s(), "generator": generator_cpu_s()}
        self.record(name, clients, result, before, after)

    def load(self, servers, ids_file, clients, seconds):
        """Loads every server with its clients at once, and adds up what they answered."""
        loads = [deduct(server.port, count, seconds, self.token_file, ids_file)
                 for server, count in zip(servers, clients, strict=True)]
        results = [load.result() for load in loads]
        self.answered += sum(result["done"] for result in results)
        self.unanswered += sum(clients)  # at most: those under way when the load ended
        worst = {name: max(result[name] for result in results) for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")}
        return worst | {name: sum(result[name] for result in results) for name in ("per_s", "done")}

    def product_leg(self, name, settings, lag, clients):
        """One server per element of `clients`."""
        ids_file = self.hot_file if name.endswith("hot") else self.spread_file
        servers = []
        try:
            for _ in clients:
                servers.append(Server(self.product, name, settings))
            idle_mb = self.idle_memory_mb(servers[0], lag)
            self.load(servers, ids_file, clients, self.options.warm_up_s)
            self.settle(lag)
            before = self.cpu_s(servers)
            extra = {"idle_mb": idle_mb}
            if lag:
                lag = Lag(settings["DATABASE_URL"])
                lag.watch()
            try:
                result = self.load(servers, ids_file, clients, self.options.seconds)
                if lag:
                    lag.end()
                    extra["lag"] = {"drain_ms": lag.drained_within_ms()} | lag.summary()
            finally:
                if lag:
                    lag.close()
            after = self.cpu_s(servers)
            extra["peak_mb"] = max(server.peak_memory_mb() for server in servers)
        finally:
            for server in servers:
                server.stop()
        self.record(name, sum(clients), result | extra, before, after)

    def idle_memory_mb(self, server, lag):
        """Once a round: of a server that has started, and published what waited."""
        if any("idle_mb" in leg and leg["idle_mb"] and leg["round"] == self.round for leg in self.legs):
            return None
        self.settle(lag)
        time.sleep(IDLE_S)
        return server.memory_mb()

    def settle(self, lag):
        """Waits until nothing of what was before goes on."""
        if lag:
            lag.drained_within_ms()
            rewriting = lambda: b"aof_rewrite_in_progress:0" in self.redis.command("INFO", "persistence")
            await_that("Redis has rewritten its file", rewriting, REWRITE_TIMEOUT_S)

    def cpu_s(self, servers):
        return {
            "server": sum(server.cpu_s() for server in servers), "database": self.cluster.cpu_s(),
            "redis": self.redis.cpu_s(), "generator": generator_cpu_s(),
        }

    def record(self, name, clients, result, before, after):
        cpu_us = {part: (after[part] - before[part]) / result["done"] * 1e6 for part in before}
        leg = {"name": name, "round": self.round, "clients": clients, "cpu_us": cpu_us} | result
        self.legs.append(leg)
        shares = ", ".join(f"{part} {us:.0f}" for part, us in cpu_us.items())
        p99 = f"p50 {leg['p50_ms']:.2f} p99 {leg['p99_ms']:.2f} ms; " if "p50_ms" in leg else ""
        say(f"  {name:<14} {clients:>4} clients {leg['per_s']:>9.0f}/s  {p99}CPU µs: {shares}")

    def replicas(self):
        """One replica and two by turns on one database; afterwards everything must still be right."""
        url = self.fresh_database("replicated")
        settings = {"DATABASE_URL": url, "REDIS_URL": self.redis.url}
        lag = Lag(url)
        try:
            for self.round in range(1, self.options.rounds + 1):
                say(f"round {self.round} of {self.options.rounds}: one replica and two")
                self.product_leg("one-replica", settings, lag, [FULL_LOAD_CLIENTS])
                self.product_leg("two-replicas", settings, lag, [FULL_LOAD_CLIENTS // 2] * 2)
            say("  verifying the database and the streams")
            self.checks["verify"] = self.product.command("verify", settings=settings).strip().splitlines()[-1]
            self.checks["outbox verify"] = self.product.command("outbox", "verify", settings=settings).strip().splitlines()[-1]
            lag.drained_within_ms()
            found = int(lag.session.value("select count(*) from commands where command_type = 'DeductCredits' and outcome = 'accepted'"))
            logs = int(lag.session.value("select count(*) from usage_logs"))
            self.check_deductions("replicas", found, logs)
        finally:
            lag.close()
        self.cluster.drop("replicated")
        self.redis.empty()

    def sqlite(self):
        path = self.folder / "embedded.db"
        settings = {"VISIONSCOPE__DATABASE__PATH": str(path)}
        self.provision("embedded", settings)
        self.answered = self.unanswered = 0
        for self.round in range(1, self.options.rounds + 1):
            say(f"round {self.round} of {self.options.rounds}: SQLite")
            for name in ("sqlite-spread", "sqlite-hot"):
                self.record("sqlite-baseline", 1, run_sqlite(self.folder, self.options.seconds), {}, {})
                self.product_leg(name, settings, None, [FULL_LOAD_CLIENTS])
        connection = sqlite3.connect(path)
        found, = connection.execute("select count(*) from commands where command_type = 'DeductCredits' and outcome = 'accepted'").fetchone()
        logs, = connection.execute("select count(*) from usage_logs").fetchone()
        connection.close()
        self.check_deductions("SQLite", found, logs)
