"""A leg: one load for some seconds, and all that is measured of it.

Answers per second, percentiles, processor time of everybody, memory, and the publisher's lag.
Processor time is counted until the last event is published. Each leg of the product has server processes
of its own, so that nothing of them runs beside a baseline. Deliberately absent: which legs there are, and
in which order.
"""

import time

from lag import Lag
from load import deduct, generator_cpu_s
from postgres import measure_pgbench, warm_up_pgbench
from processes import Failure, await_that
from product import Server
from sqlite_baseline import run_in_process, run_sqlx

IDLE_S = 5
REWRITE_TIMEOUT_S = 120


def say(text):
    print(text, flush=True)


class Legs:
    """Runs legs and keeps what they found."""

    def __init__(self, options, cluster, redis, product, folder):
        self.options, self.cluster, self.redis, self.program, self.folder = options, cluster, redis, product, folder
        self.found = []
        self.answered = self.unanswered = 0
        self.round = 0
        self.token = product.token()
        self.token_file = folder / "token"
        self.token_file.write_text(self.token + "\n")

    def count_anew(self):
        self.answered = self.unanswered = 0

    def check(self, name, commands, usage_logs):
        """Every answered deduction is there, and no more than were under way when a load ended."""
        if not self.answered <= commands <= self.answered + self.unanswered or commands != usage_logs:
            stored = f"{commands} and {usage_logs} usage logs are stored"
            raise Failure(f"{name}: {self.answered} deductions were answered, {stored}")

    def pgbench(self, name, url, clients):
        warm_up_pgbench(url, clients, self.options.warm_up_s)
        before = {"database": self.cluster.cpu_s(), "generator": generator_cpu_s()}
        result = measure_pgbench(url, clients, self.options.seconds)
        after = {"database": self.cluster.cpu_s(), "generator": generator_cpu_s()}
        self.record(name, clients, result, before, after)

    def sqlite_baselines(self):
        for name, run in (("sqlite-sqlx", run_sqlx), ("sqlite-process", run_in_process)):
            self.record(name, 1, run(self.folder, self.options.seconds), {}, {})

    def product(self, name, settings, ids_file, clients):
        """One server per element of `clients`; all deduct from the workspaces of a file."""
        servers = []
        lag = Lag(settings["DATABASE_URL"]) if "REDIS_URL" in settings else None
        try:
            for _ in clients:
                servers.append(Server(self.program, name, settings))
            self.settle(lag)
            extra = self.idle_memory(servers[0])
            self.load(servers, ids_file, clients, self.options.warm_up_s)
            self.settle(lag)
            before = self.cpu_s(servers)
            if lag:
                lag.watch()
            result = self.load(servers, ids_file, clients, self.options.seconds)
            if lag:
                lag.end()
                extra["lag"] = {"drain_ms": lag.drained_within_ms()} | lag.summary()
            after = self.cpu_s(servers)
            extra["peak_mb"] = max(server.peak_memory_mb() for server in servers)
        finally:
            for server in servers:
                server.stop()
            if lag:
                lag.close()
        self.record(name, sum(clients), result | extra, before, after)

    def load(self, servers, ids_file, clients, seconds):
        """Loads every server with its clients at once, and adds up what they answered."""
        loads = []
        try:
            for server, count in zip(servers, clients, strict=True):
                loads.append(deduct(server.port, count, seconds, self.token_file, ids_file))
            results = [load.result() for load in loads]
        finally:
            for load in loads:
                load.stop()
        self.answered += sum(result["done"] for result in results)
        self.unanswered += sum(clients)  # at most: those under way when the load ended
        worst = {name: max(result[name] for result in results) for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")}
        return worst | {name: sum(result[name] for result in results) for name in ("per_s", "done")}

    def idle_memory(self, server):
        """Once a round: of a server that has started, and was asked for nothing yet."""
        if any("idle_mb" in leg and leg["round"] == self.round for leg in self.found):
            return {}
        time.sleep(IDLE_S)
        return {"idle_mb": server.memory_mb()}

    def settle(self, lag):
        """Waits until nothing of what was before goes on."""
        if lag:
            lag.drained_within_ms()
            is_done = lambda: b"aof_rewrite_in_progress:0" in self.redis.command("INFO", "persistence")
            await_that("Redis has rewritten its file", is_done, REWRITE_TIMEOUT_S)

    def cpu_s(self, servers):
        return {
            "server": sum(server.cpu_s() for server in servers), "database": self.cluster.cpu_s(),
            "redis": self.redis.cpu_s(), "generator": generator_cpu_s(),
        }

    def record(self, name, clients, result, before, after):
        cpu_us = {part: (after[part] - before[part]) / result["done"] * 1e6 for part in before}
        work_us = cpu_us.get("server", 0) + cpu_us.get("database", 0)
        leg = {"name": name, "round": self.round, "clients": clients, "cpu_us": cpu_us, "work_us": work_us} | result
        self.found.append(leg)
        shares = ", ".join(f"{part} {us:.0f}" for part, us in cpu_us.items())
        p99 = f"p50 {leg['p50_ms']:.2f} p99 {leg['p99_ms']:.2f} ms; " if "p50_ms" in leg else ""
        say(f"  {name:<14} {clients:>4} clients {leg['per_s']:>9.0f}/s  {p99}CPU µs: {shares}")

