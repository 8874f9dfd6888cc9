"""The consumers run: what the consumers inside the server take of the commands, and how many events they fold alone.

First they are paused, and deductions make a backlog. Each consumer then folds it alone, while nothing else is sent. After
that, deductions are sent with all of them paused and with all of them running, by turns: as many as the server takes, and half
as many. In the end all figures of `analytics` are made again, beside half as many deductions as the server takes.
Absent on purpose: Redis, so that the events wait to be published.
"""

import json
import secrets
import time
import urllib.request

from rounds import CLIENTS, WORKSPACES, tuned
from servers import Failure, cluster, wait_until

PARTS = ("postgres", "sqlite")
CONSUMERS = ("analytics", "billing", "notifications")
PAUSED, RUNNING = "consumers paused", "consumers running"
FULL, HALF = "as many as it takes", "half as many"
EVENTS, QUICK_EVENTS = {"PostgreSQL": 1_000_000, "SQLite": 250_000}, 30_000
PAUSE_S = 1.5  # until every server knows that a consumer is paused
LONG_S = 3600


def measure(legs):
    found = {"postgres": {}, "checks": {}, "folding": {}}
    if "postgres" in legs.options.only:
        with cluster(tuned()) as legs.cluster:
            found["postgres"]["tuned"] = legs.cluster.settings
            found["folding"]["PostgreSQL"] = on(legs, "PostgreSQL", {"DATABASE_URL": legs.cluster.create("product")})
        legs.cluster = None
    if "sqlite" in legs.options.only:
        settings = {"VISIONSCOPE__DATABASE__PATH": str(legs.folder / "consumers.db")}
        found["folding"]["SQLite"] = on(legs, "SQLite", settings)
    return found


class Operator:
    """Asks a server about its consumers, and stops and starts them."""

    def __init__(self, port, token):
        self.base, self.headers = f"http://127.0.0.1:{port}/v1/ops/consumers", {"Authorization": f"Bearer {token}"}

    def ask(self, path="", body=None):
        data, headers = (None, {}) if body is None else (json.dumps(body).encode(), {"Content-Type": "application/json"})
        request = urllib.request.Request(self.base + path, data, self.headers | headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def all(self):
        return {item["consumer"]: item for item in self.ask()["items"]}

    def change(self, what, *consumers):
        for consumer in consumers:
            self.ask(f"/{consumer}/{what}", {"reason": "A benchmark"})
        if what == "pause":
            time.sleep(PAUSE_S)

    def lag(self, *consumers):
        return max(self.all()[consumer]["lag_events"] for consumer in consumers)

    def catch_up(self, *consumers):
        """Waits until these have taken all events, and returns how long that took."""
        begin = time.monotonic()
        wait_until("the consumers have taken all events", lambda: self.lag(*consumers) == 0, LONG_S, every_s=0.02)
        return time.monotonic() - begin


def on(legs, database, settings):
    ids = legs.product.provision(settings, WORKSPACES)
    paths = legs.deductions_file("deductions", ids)
    with legs.product.server(settings) as server:
        _, port = server
        operator = Operator(port, legs.product.token)
        send = lambda seconds, *more: legs.wrk(seconds, (port, CLIENTS, paths, secrets.token_hex(8), *more))
        folded = alone(legs, database, operator, send)
        for _ in legs.rounds(f"deductions beside the consumers on {database}"):
            half_ms = None
            for state, change in ((PAUSED, "pause"), (RUNNING, "resume")):
                operator.change(change, *CONSUMERS)
                if state == RUNNING:
                    operator.catch_up(*CONSUMERS)
                full = send(legs.options.seconds)
                lag = operator.lag(*CONSUMERS)
                caught_up_s = operator.catch_up(*CONSUMERS) if state == RUNNING else None
                legs.record(f"{FULL}, {state}, {database}", CLIENTS, full)
                # So long each client waits before a request, so that half as many are sent.
                half_ms = half_ms or max(1, round(CLIENTS / (full["per_s"] / 2) * 1000 - full["p50_ms"]))
                legs.record(f"{HALF}, {state}, {database}", CLIENTS, send(legs.options.seconds, "", str(half_ms)))
            folded["lag"] = max(folded.get("lag", (0, 0)), (caught_up_s, lag))
            operator.catch_up(*CONSUMERS)
        folded["rebuild"] = rebuild(operator, lambda: send(1, "", str(half_ms)))
        print("  lag {}, rebuild {}".format(folded["lag"], folded["rebuild"]))
    return folded


def alone(legs, database, operator, send):
    """Makes a backlog, and lets each consumer fold it. Returns how many events each has folded a second."""
    wanted = QUICK_EVENTS if legs.options.quick else EVENTS[database]
    operator.change("pause", *CONSUMERS)
    print(f"a backlog of {wanted:,} events on {database}")
    while operator.lag(*CONSUMERS) < wanted:
        send(legs.options.seconds)
    folded = {}
    for consumer in CONSUMERS:
        events = operator.lag(consumer)
        operator.change("resume", consumer)
        seconds = operator.catch_up(consumer)
        folded[consumer] = (events, seconds)
        print(f"  {consumer:<38} {events:>8} events {events / seconds:>8.0f} /s")
    return folded


def rebuild(operator, send):
    """Makes the figures of `analytics` again beside a load. Returns how long each half of the events has taken."""
    before = operator.all()["analytics"]
    total = sum(int(partition["head"]) for partition in before["partitions"])
    operator.change("rebuild", "analytics")
    begin, half, end = time.monotonic(), None, None
    while end is None:
        if time.monotonic() - begin > LONG_S:
            raise Failure(f"the figures were not made again within {LONG_S} s")
        send()
        now = operator.all()["analytics"]
        building = now.get("building")
        if half is None and (building is None or building["lag_events"] <= total / 2):
            half = time.monotonic()
        if building is None and now["version"] > before["version"]:
            end = time.monotonic()
    return total, half - begin, end - half
