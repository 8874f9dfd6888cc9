"""A leg is one load for some seconds, with all that is measured of it.

Processor time is counted until the last event is published. Every leg of the product has a server of its own, so
that no server runs beside a baseline. Absent on purpose: which legs there are, and their order.
"""

import json
import os
import resource
import secrets
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from servers import PSQL, ROOT, Failure, cpu_s, memory_mb, psql, run, stop, wait_until

HERE = Path(__file__).parent
SLACK_S = 60  # for a program to start, to connect and to end, and for one answer
DRAIN_TIMEOUT_S = 120
IDLE_S = 3  # before its memory is read
CONNECTIONS_PER_S = 64  # at least; pgbench connects within its seconds
WARM_UP_CLIENTS = 64

# How many events wait to be published, and how old the oldest of them is, in milliseconds.
LAG = """
select coalesce(sum(p.seq - b.seq_to), 0),
    coalesce(max(extract(epoch from clock_timestamp() - o.recorded_at)) * 1000, 0)
from stream_leases l
join outbox_partitions p using (partition_id)
cross join lateral (
    select coalesce(max(s.seq_to), l.floor_seq - 1) as seq_to from stream_batches s
    where s.partition_id = l.partition_id and s.generation = l.generation
) b
left join event_outbox o on o.partition_id = l.partition_id and o.seq = b.seq_to + 1"""
STORED = """
select (select count(*) from commands where command_type = 'DeductCredits' and outcome = 'accepted'),
    (select count(*) from usage_logs)"""


def drain(url):
    """Waits until every event is published and returns how long that took, in milliseconds."""
    begin = time.monotonic()
    wait_until("every event is published", lambda: psql(url, LAG)[0][0] == "0", DRAIN_TIMEOUT_S, every_s=0.02)
    return (time.monotonic() - begin) * 1000


@contextmanager
def lag_samples(url):
    """A list that holds (events that wait, age of the oldest), four times a second, once the block has ended."""
    samples = []
    process = subprocess.Popen([*PSQL, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        process.stdin.write(f"{LAG} \\watch 0.25\n")
        process.stdin.flush()
        yield samples
    finally:
        stop(process)
        lines = process.stdout.read().splitlines()
        samples += [tuple(map(float, line.split("\t"))) for line in lines if "\t" in line]


class Legs:
    """Runs legs one after the other and keeps what they found."""

    def __init__(self, options, product, folder):
        self.options, self.product, self.folder = options, product, folder
        self.found, self.round, self.cluster = [], 0, None
        self.token_file = self.lines_file("token", [product.token])
        self.count_anew()

    def rounds(self, what):
        for self.round in range(1, self.options.rounds + 1):
            print(f"round {self.round} of {self.options.rounds}: {what}")
            yield

    def lines_file(self, name, lines):
        path = self.folder / name
        path.write_text("\n".join(lines) + "\n")
        return path

    def deductions_file(self, name, ids):
        return self.lines_file(name, [f"/v1/workspaces/{id}/credits/deduct" for id in ids])

    def count_anew(self):
        self.answered = self.under_way = 0

    def check_stored(self, stored):
        """Every answered deduction is stored, and nothing beyond those that were under way when a load ended."""
        commands, usage_logs = map(int, stored)
        if not self.answered <= commands <= self.answered + self.under_way or commands != usage_logs:
            raise Failure(f"{self.answered} deductions answered, but {commands} and {usage_logs} usage logs stored")

    def cpu_s(self, servers=()):
        """Processor seconds so far. The generators are the programs that have ended, wrk and pgbench above all."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        pids = {"server": [pid for pid, _ in servers]}
        if self.cluster:
            pids |= {"database": [self.cluster.postmaster], "redis": [self.cluster.redis_pid]}
        cpu = {part: sum(map(cpu_s, of_part)) for part, of_part in pids.items()}
        return cpu | {"generator": children.ru_utime + children.ru_stime}

    def record(self, load, clients, result, before=None, after=None):
        cpu_us = {part: (after[part] - before[part]) / result["done"] * 1e6 for part in after or {}}
        self.found.append({"load": load, "clients": clients, "round": self.round, "cpu_us": cpu_us} | result)
        percentiles = "".join(f"  {name[:3]} {result[name]:.2f}" for name in ("p50_ms", "p99_ms") if name in result)
        shares = "".join(f"  {part} {us:.0f} µs" for part, us in cpu_us.items())
        print(f"  {load:<38} {clients:>4} clients {result['per_s']:>8.0f} /s{percentiles}{shares}")

    def pgbench(self, load, url, clients, *arguments):
        """pgbench's own transaction, or the one in `arguments`."""
        def once(seconds):
            with tempfile.TemporaryDirectory() as folder:
                report, = run(["pgbench", "-M", "prepared", "-c", str(clients), "-j", str(min(2, clients)), "-T",
                               str(seconds + clients // CONNECTIONS_PER_S), "--log", f"--log-prefix={folder}/times",
                               *arguments, url], timeout_s=seconds + SLACK_S)
                us = sorted(int(line.split()[2]) for log in Path(folder).iterdir() for line in log.open())
            tps = [float(line.split()[2]) for line in report.splitlines() if line.startswith("tps =")]
            if not tps or not us or "number of failed transactions: 0 " not in report:
                raise Failure(f"pgbench: {report}")
            return {f"p{part}_ms": us[len(us) * part // 100] / 1000 for part in (50, 95, 99)} | {
                "per_s": tps[0], "done": len(us)}

        once(self.options.warm_up_s)
        before = self.cpu_s()
        result = once(self.options.seconds)
        self.record(load, clients, result, before, self.cpu_s())

    def sqlite_baseline(self, load):
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            output, = run([ROOT / os.environ["ONE_TRANSACTION_BIN"], f"{folder}/db", str(self.options.seconds)])
        self.record(load, 1, json.loads(output))

    def deduct(self, load, settings, paths_file, clients):
        """The product: one server for each number of clients, all on the same database."""
        url, publishes, extra = settings.get("DATABASE_URL"), "REDIS_URL" in settings, {}
        with ExitStack() as stack:
            servers = [stack.enter_context(self.product.server(settings)) for _ in clients]
            time.sleep(IDLE_S)
            extra["idle_mb"] = memory_mb(servers[0][0], "VmRSS")
            self.warm_up(servers, paths_file)
            if publishes:
                drain(url)
            before = self.cpu_s(servers)
            with (lag_samples(url) if publishes else nullcontext([])) as extra["lag"]:
                result = self.send(servers, paths_file, clients, self.options.seconds)
            if publishes:
                extra["drain_ms"] = drain(url)
            after = self.cpu_s(servers)
            extra["peak_mb"] = max(memory_mb(pid, "VmHWM") for pid, _ in servers)
        self.record(load, sum(clients), result | extra, before, after)

    def warm_up(self, servers, paths_file):
        """Deducts from every workspace once, on every server: a slow machine gets to know as many as a fast one."""
        paths, sent = len(paths_file.read_text().splitlines()), 0
        while sent < paths:
            clients = [WARM_UP_CLIENTS] * len(servers)
            result = self.send(servers, paths_file, clients, self.options.warm_up_s, str(sent + 1))
            sent += result["done"] // len(servers)

    def send(self, servers, paths_file, clients, seconds, *first):
        """Deducts from all servers at once."""
        result = self.wrk(seconds, *((port, count, paths_file, secrets.token_hex(8), *first)
                                     for (_, port), count in zip(servers, clients)))
        self.answered += result["done"]
        self.under_way += sum(clients)
        return result

    def wrk(self, seconds, *loads, may_refuse=False):
        """Each load is (port, clients, file of paths, run of its deductions, first path), and has a wrk with one thread,
        which sends more requests than two processors can answer. An error ends the run, unless requests may be refused:
        then only the others are done, but the times are of all."""
        outputs = run(*(["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", f"{SLACK_S}s", "-s",
                         HERE / "load.lua", f"http://127.0.0.1:{port}", "--", self.token_file, paths_file, *mark]
                        for port, clients, paths_file, *mark in loads), timeout_s=seconds + 2 * SLACK_S)
        results = [json.loads(output.strip().splitlines()[-1]) for output in outputs]
        if any(result["errors"] and not may_refuse or not result["done"] for result in results):
            raise Failure(f"requests failed: {outputs}")
        for result in results:
            result["per_s"] *= 1 - result["errors"] / result["done"]
            result["done"] -= result["errors"]
        return {name: sum(result[name] for result in results) for name in ("per_s", "done")} | {
            name: max(result[name] for result in results) for name in ("p50_ms", "p95_ms", "p99_ms")}
