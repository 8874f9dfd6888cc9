"""The jobs run: how many jobs workers take and complete, and what a full queue and idle workers cost.

Eight workers take up to 32 jobs at a time and complete them at once, with wrk (see jobs.lua): nothing runs but the queue.
A metered job has a hold, which each completion captures in part. Backlogs are sent beforehand, over HTTP, but for a
million jobs that wait: SQL writes these. Absent on purpose: workers that fail, and jobs that take time.
"""

import http.client
import json
import secrets
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from legs import HERE, SLACK_S, drain
from rounds import CLIENTS, WORKSPACES, tuned
from servers import Failure, cluster, cpu_s, psql, run

PARTS = ("idle", "fairness", "postgres", "waiting", "sqlite")
WORKERS, MOST = 8, 32
PLAIN, METERED = "plain jobs", "metered jobs"
SENT, COMPLETED, AT_ONCE = "sent", "leased and completed", "leased and completed while others are sent"
BESIDE = "deductions beside"
QUEUES = {PLAIN: "default", METERED: "video_processing"}
BODIES = {PLAIN: {"kind": "thumbnails.make", "args": {"image": "s3://images/17.png"}},
          METERED: {"kind": "video_processing.analyse", "args": {"video": "s3://videos/17.mp4"},
                    "hold": {"feature_code": "text.generate", "credits": "0.25", "user_id": "user-7"}}}
ACTUAL = {PLAIN: [], METERED: ["0.2"]}
BACKLOG, QUICK_BACKLOG = {PLAIN: 50_000, METERED: 30_000}, 10_000
RESERVE = 1.4  # of a backlog, so that it is not used up
DEDUCTIONS_WAIT_MS = 250  # before each deduction beside the jobs

FEW_WAIT, MANY_READY, MANY_WAIT = "few jobs are ready", "a million jobs are ready", "a million jobs wait for their time"
FEW, MANY, QUICK_MANY = 20_000, 1_000_000, 100_000
SLICE_S = 1  # of a load: shorter than few jobs last

IDLE_WORKERS, IDLE_S, QUICK_IDLE_S, BEGIN_S = 500, 20, 4, 3  # as long as a worker waits
NO_WORKERS, POLLING, BEATING = "no worker", "workers wait", "workers wait and send heartbeats"

FLOOD_JOBS, QUICK_FLOOD_JOBS = 100_000, 10_000
QUIET_EVERY_S = 0.2
FLOODING, FLOODED = "while another sends all it can", "behind another's 100,000 jobs"

CAPTURED = """
select count(*), sum(case when captured_credits is null then 0 else 1 end) from jobs_done
where state = 'completed' and hold_id is not null"""


def measure(legs):
    found, chosen = {"postgres": {}, "checks": {}, "idle": [], "first": {}}, legs.options.only
    if chosen - {"sqlite"}:
        with cluster(tuned()) as legs.cluster:
            found["postgres"]["tuned"] = legs.cluster.settings
            if "idle" in chosen:  # first, so that nothing is left to be vacuumed
                idle(legs, found)
            if "fairness" in chosen:
                flooded(legs, found)
            if "postgres" in chosen:
                on_postgres(legs, found)
            if "waiting" in chosen:
                beside_many(legs)
        legs.cluster = None
    if "sqlite" in chosen:
        on_sqlite(legs, found)
    return found


class Api:
    """What a run asks of a server besides its loads."""

    def __init__(self, port, token):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SLACK_S)
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def post(self, path, body):
        headers = self.headers | {"Idempotency-Key": secrets.token_hex(8)}
        self.connection.request("POST", path, json.dumps(body), headers)
        answer = self.connection.getresponse()
        text = answer.read().decode()
        if answer.status >= 300:
            raise Failure(f"POST {path}: {answer.status} {text[:500]}")
        return json.loads(text)

    def register(self, count, queue):
        worker = {"name": "bench", "queues": [queue], "slots": MOST}
        return [self.post("/v1/workers", worker)["worker_id"] for _ in range(count)]


def fresh(legs, name):
    """The addresses of an empty database, and of a Redis without the events of another one."""
    legs.cluster.redis("flushall")
    return {"DATABASE_URL": legs.cluster.create(name), "REDIS_URL": legs.cluster.redis_url}


def jobs_file(legs, name, ids, what):
    return legs.lines_file(name, [f"/v1/workspaces/{id}/jobs {json.dumps(BODIES[what])}" for id in ids])


def workers(legs, port, what, count=WORKERS):
    """Registers workers of a queue. What it returns lets them work for some seconds."""
    ids = Api(port, legs.product.token).register(count, QUEUES[what])
    file = legs.lines_file(f"workers-{secrets.token_hex(4)}", ids)
    command = ["wrk", f"-t{count}", f"-c{count}", "--timeout", f"{SLACK_S}s", "-s", HERE / "jobs.lua",
               f"http://127.0.0.1:{port}", "--", legs.token_file, file, str(MOST), *ACTUAL[what]]

    def work(seconds, may_be_empty=False):
        output, = run([command[0], f"-d{seconds}s", *command[1:]], timeout_s=seconds + SLACK_S)
        result = json.loads(output.strip().splitlines()[-1])
        if result["errors"] or result["refused"] or not (result["done"] or may_be_empty):
            raise Failure(f"jobs were not completed: {output[:1000]}")
        if result["empty"] and not may_be_empty:
            raise Failure(f"the queue was empty after {result['done']} jobs")
        return summary([result])

    return work


def summary(results):
    """The milliseconds are those of a lease."""
    lease_ms = sorted(ms for result in results for ms in result["lease_ms"])
    complete_ms = sorted(ms for result in results for ms in result["complete_ms"])
    at = lambda part, values: values[len(values) * part // 100] if values else None
    done = sum(result["done"] for result in results)
    return {f"p{part}_ms": at(part, lease_ms) for part in (50, 95, 99)} | {
        "per_s": done / sum(result["seconds"] for result in results), "done": done, "complete_p50_ms": at(50, complete_ms),
        "lease_ms": lease_ms, "complete_ms": complete_ms, "seconds": sum(result["seconds"] for result in results)}


class Backlog:
    """The jobs of one kind that were sent and are not completed."""

    def __init__(self, legs, what, ids, database):
        self.legs, self.what, self.database, self.left = legs, what, database, 0
        self.completed, self.loads = 0, 0
        self.file = jobs_file(legs, f"jobs-{QUEUES[what]}", ids, what)

    def send(self, port, seconds):
        result = self.legs.wrk(seconds, (port, CLIENTS, self.file, secrets.token_hex(8)))
        self.left += result["done"]
        return result

    def fill(self, server):
        """Sends jobs until there are enough for a load, and records the first of these sendings."""
        wanted, is_first = QUICK_BACKLOG if self.legs.options.quick else BACKLOG[self.what], True
        while self.left < wanted:
            before = self.legs.cpu_s([server])
            result = self.send(server[1], self.legs.options.seconds)
            if is_first:
                self.legs.record(f"{self.what} {SENT}, {self.database}", CLIENTS, result, before, self.legs.cpu_s([server]))
            is_first = False

    def work(self, server, name, beside=None, may_be_empty=False):
        """Lets workers complete them, after a warm-up. `beside` is what else happens for as many seconds."""
        work = workers(self.legs, server[1], self.what)
        warm_up = self.done(work(1, may_be_empty))
        seconds = self.legs.options.seconds
        if not may_be_empty:
            seconds = max(1, min(seconds, int(self.left / RESERVE / warm_up["per_s"])))
        before = self.legs.cpu_s([server])
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(beside, seconds) if beside else None
            result = self.done(work(seconds, may_be_empty))
            also = other.result() if other else None
        self.legs.record(f"{self.what} {name}, {self.database}", WORKERS, result, before, self.legs.cpu_s([server]))
        return also

    def done(self, result):
        self.left -= result["done"]
        self.completed += result["done"]
        self.loads += 1
        return result


def check_captured(backlog, stored):
    """Every metered job that was answered as completed is captured, and nothing beyond those that were under way."""
    completed, captured = map(int, stored)
    under_way = WORKERS * MOST * backlog.loads
    if completed != captured or not backlog.completed <= completed <= backlog.completed + under_way:
        raise Failure(f"{backlog.completed} jobs answered as completed, but {completed} stored and {captured} captured")


def on_postgres(legs, found):
    settings = fresh(legs, "product")
    url = settings["DATABASE_URL"]
    ids = legs.product.provision(settings, WORKSPACES)
    backlogs = [Backlog(legs, what, ids, "PostgreSQL") for what in (PLAIN, METERED)]
    for _ in legs.rounds("jobs on PostgreSQL"):
        with legs.product.server(settings) as server:
            for backlog in backlogs:
                backlog.fill(server)
                drain(url)
                backlog.work(server, COMPLETED)
                also = backlog.work(server, AT_ONCE, lambda seconds: backlog.send(server[1], seconds), may_be_empty=True)
                legs.record(f"{backlog.what} {SENT} meanwhile, PostgreSQL", CLIENTS, also)
    check_captured(backlogs[1], psql(url, CAPTURED)[0])
    found["checks"]["verify"] = legs.product.command("verify", settings=settings)


def on_sqlite(legs, found):
    path = str(legs.folder / "jobs.db")
    settings = {"VISIONSCOPE__DATABASE__PATH": path}
    ids = legs.product.provision(settings, WORKSPACES)
    backlog = Backlog(legs, METERED, ids, "SQLite")
    deductions = legs.deductions_file("deductions", ids)
    for _ in legs.rounds("jobs on SQLite"):
        with legs.product.server(settings) as server:
            legs.warm_up([server], deductions)
            backlog.fill(server)
            backlog.work(server, COMPLETED)
            send = lambda seconds: legs.wrk(seconds, (server[1], CLIENTS, deductions, secrets.token_hex(8), "",
                                                      str(DEDUCTIONS_WAIT_MS)))
            backlog.fill(server)
            also = backlog.work(server, f"{COMPLETED}, {BESIDE}", send)
            legs.record(f"{BESIDE} {METERED}, SQLite", CLIENTS, also)
    with closing(sqlite3.connect(path)) as connection:
        check_captured(backlog, connection.execute(CAPTURED).fetchone())


# So many jobs of 10,000 workspaces, a millisecond apart.
FILL = """
insert into jobs (job_id, queue, kind, runner, workspace_id, state, priority, rank, run_at, attempt, max_attempts, args,
    fingerprint, actor, correlation_id, created_at, changed_at)
select gen_random_uuid(), '{queue}', 'thumbnails.make', 'worker',
    ('00000000-0000-4000-8000-' || lpad(to_hex(n % 10000), 12, '0'))::uuid, '{state}', 5,
    at + n * interval '1 ms' - interval '5 minutes', at, 0, 12, '{{"image": "s3://images/17.png"}}',
    decode(repeat('00', 32), 'hex'), 'bench', 'bench', now(), now()
from generate_series(1, {count}) n, (select now() + interval '{ahead}' as at) a"""


def fill(url, count, state="ready", ahead="0"):
    if count > 0:
        psql(url, FILL.format(queue=QUEUES[PLAIN], count=count, state=state, ahead=ahead))


def beside_many(legs):
    """The same work with few jobs and with a million, on databases of their own, in short slices: between these, SQL makes
    up for the jobs that were completed."""
    many = QUICK_MANY if legs.options.quick else MANY
    sides = {FEW_WAIT: FEW, MANY_READY: many, MANY_WAIT: FEW}
    urls = {load: legs.cluster.create(f"waiting_{n}") for n, load in enumerate(sides)}
    for load, ready in sides.items():
        print(f"preparing: {load}, {many if load != FEW_WAIT else FEW:,} of them")
        with legs.product.server({"DATABASE_URL": urls[load]}):
            pass
        fill(urls[load], ready)
        if load == MANY_WAIT:
            fill(urls[load], many, "waiting", "5 days")
        psql(urls[load], "vacuum analyze jobs")
    legs.cluster.sql("checkpoint")
    for _ in legs.rounds("leased and completed with few jobs and with a million"):
        for load, url in urls.items():
            with legs.product.server({"DATABASE_URL": url}) as server:
                work, results = workers(legs, server[1], PLAIN), []
                for _ in range(legs.options.seconds + 1):
                    results.append(work(SLICE_S))
                    fill(url, results[-1]["done"])
                legs.record(f"{COMPLETED}, {load}", WORKERS, summary(results[1:]))  # the first one is the warm-up


def idle(legs, found):
    """Processor time of the server and of PostgreSQL while workers wait for jobs, in percent of one processor."""
    settings, wait_s = fresh(legs, "idle"), QUICK_IDLE_S if legs.options.quick else IDLE_S
    for _ in legs.rounds(f"{IDLE_WORKERS} idle workers"):
        with legs.product.server(settings) as (pid, port):
            ids = Api(port, legs.product.token).register(IDLE_WORKERS, QUEUES[PLAIN])
            lease = json.dumps({"max": 1, "wait_s": wait_s})
            polls = legs.lines_file("polls", [f"/v1/workers/{id}/lease {lease}" for id in ids])
            beats = legs.lines_file("beats", [f"/v1/workers/{id}/heartbeat {{}}" for id in ids])
            load = lambda clients, file, *wait: (port, clients, file, secrets.token_hex(8), "1", *wait)
            polling = load(IDLE_WORKERS, polls)
            # Each client for ten workers, one a second.
            states = {NO_WORKERS: [], POLLING: [polling], BEATING: [polling, load(IDLE_WORKERS // 10, beats, "1000")]}
            percent = {}
            for state, loads in states.items():
                with ThreadPoolExecutor(1) as pool:
                    sent = pool.submit(legs.wrk, BEGIN_S + wait_s + 2, *loads) if loads else None
                    time.sleep(BEGIN_S)
                    begin, before = time.monotonic(), [cpu_s(pid), cpu_s(legs.cluster.postmaster)]
                    time.sleep(wait_s)
                    seconds = time.monotonic() - begin
                    after = [cpu_s(pid), cpu_s(legs.cluster.postmaster)]
                    percent[state] = [(b - a) / seconds * 100 for a, b in zip(before, after)]
                    requests = sent.result()["done"] if sent else 0
                print("  {:<38} {:>6} requests  server {:.1f} %  database {:.1f} %".format(state, requests, *percent[state]))
            found["idle"].append(percent)


def flooded(legs, found):
    """Seconds from the sending of a workspace's first job until a worker has it, while one worker works all the time."""
    settings = fresh(legs, "flooded")
    url = settings["DATABASE_URL"]
    seconds = legs.options.seconds
    quiet_jobs = int(seconds / QUIET_EVERY_S) + 1
    loud, *quiet = legs.product.provision(settings, 1 + 2 * quiet_jobs * legs.options.rounds)
    flood = Backlog(legs, PLAIN, [loud], "PostgreSQL")
    wanted = QUICK_FLOOD_JOBS if legs.options.quick else FLOOD_JOBS
    for _ in legs.rounds("the first job of a workspace beside those of another"):
        with legs.product.server(settings) as (_, port), ThreadPoolExecutor(2) as pool:
            work = workers(legs, port, PLAIN, 1)
            for name in (FLOODING, FLOODED):
                sending = pool.submit(flood.send, port, seconds + 1) if name == FLOODING else None
                while not sending and flood.left < wanted:
                    flood.send(port, seconds)
                working = pool.submit(work, seconds + 2, may_be_empty=True)
                waits = first_jobs(url, Api(port, legs.product.token), [quiet.pop() for _ in range(quiet_jobs)], seconds)
                result = working.result()
                flood.left -= result["done"]
                if sending:
                    sending.result()
                found["first"].setdefault(name, []).extend(waits)
                print(f"  {name:<38} {len(waits)} first jobs, {result['per_s']:,.0f} /s of all, p50 "
                      f"{waits[len(waits) // 2] * 1000:.0f} ms, the most {waits[-1] * 1000:.0f} ms")


def first_jobs(url, api, ids, seconds):
    """Sends a first job of one workspace after the other, and returns how long each has waited, the shortest first."""
    sent, end = {}, time.monotonic() + seconds
    for id in ids:
        at = time.time()
        sent[api.post(f"/v1/workspaces/{id}/jobs", BODIES[PLAIN])["job_id"]] = at
        time.sleep(QUIET_EVERY_S)
        if time.monotonic() > end:
            break
    time.sleep(1)  # the last one's
    listed = ",".join(f"'{job_id}'" for job_id in sent)
    started = psql(url, f"select job_id, extract(epoch from started_at) from job_attempts where job_id in ({listed})")
    waits = sorted(float(at) - sent[job_id] for job_id, at in started)
    if len(waits) < len(sent):
        raise Failure(f"{len(sent) - len(waits)} of {len(sent)} first jobs were not done")
    return waits
