"""The fairness run: how long a quiet workspace waits alone, and beside one that sends all it can.

A flood also takes processors from everything on the machine. So the same flood is sent to another server, too: what the
quiet workspace waits then is the machine's share.

The quiet workspace is a single client. Each connection of the other sends its next request as soon as the last was
answered or refused. At the end it has more connections than it may have commands in flight, so that many are refused;
meanwhile the server is asked whether it is ready, on both of its ports.
Absent on purpose: Redis, and clients that wait before they send again.
"""

import re
import secrets
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from rounds import ONE, tuned
from servers import cluster, free_port

PARTS = ("postgres", "sqlite")
FLOOD, OVERLOAD = 600, 2500
ALONE, BESIDE, FLOODING, OVERLOADING = "quiet alone", "quiet beside a flood", "the flood", "an overload"
ELSEWHERE = "quiet beside a flood of another server"
PROBES, OPS_PROBES = "/readyz beside an overload, main port", "/readyz beside an overload, port of its own"
PROBE_EVERY_S = 0.02
BEFORE_S, AFTER_S = 1, 1  # the flood begins before what is measured, and ends after it
REFUSALS = re.compile(r'visionscope_http_refusal_seconds_(count|bucket)\{reason="[^"]*"(?:,le="([^"]*)")?\} (\d+)')
MOST_REFUSAL_S = "0.01"  # a bucket of the histogram


def measure(legs):
    found = {"postgres": {}, "checks": {}, "refusals": {}}
    if "postgres" in legs.options.only:
        with cluster(tuned()) as legs.cluster:
            found["postgres"]["tuned"] = legs.cluster.settings
            settings, other = ({"DATABASE_URL": legs.cluster.create(name)} for name in ("product", "other"))
            found["refusals"]["PostgreSQL"] = side_by_side(legs, "PostgreSQL", settings, other)
        legs.cluster = None
    if "sqlite" in legs.options.only:
        settings, other = ({"VISIONSCOPE__DATABASE__PATH": str(legs.folder / f"{name}.db")} for name in ("product", "other"))
        found["refusals"]["SQLite"] = side_by_side(legs, "SQLite", settings, other)
    return found


def side_by_side(legs, database, settings, other):
    """Measures all loads, and returns how many requests were refused in time, and how many at all."""
    ids = [*legs.product.provision(settings, 2), *legs.product.provision(other, 1)]
    quiet, loud, elsewhere = (legs.deductions_file(name, [id]) for name, id in zip(("quiet", "loud", "elsewhere"), ids))
    seconds, in_time, refused = legs.options.seconds, 0, 0
    load = lambda clients, paths, at=None: (at or port, clients, paths, secrets.token_hex(8))

    def beside(name, flooding):
        """The quiet workspace while a flood is sent."""
        flood = pool.submit(legs.wrk, BEFORE_S + seconds + AFTER_S, flooding, may_refuse=True)
        time.sleep(BEFORE_S)
        legs.record(f"{name}, {database}", ONE, legs.wrk(seconds, load(ONE, quiet)))
        return flood.result()

    ops_port = free_port()
    settings = settings | {"VISIONSCOPE__SERVER__OPS_BIND": f"127.0.0.1:{ops_port}"}
    for _ in legs.rounds(f"a quiet workspace on {database}"):
        with legs.product.server(settings) as (_, port), ThreadPoolExecutor(3) as pool:
            legs.wrk(legs.options.warm_up_s, load(ONE, quiet))
            legs.record(f"{ALONE}, {database}", ONE, legs.wrk(seconds, load(ONE, quiet)))
            with legs.product.server(other) as (_, other_port):
                beside(ELSEWHERE, load(FLOOD, elsewhere, other_port))
            legs.record(f"{FLOODING}, {database}", FLOOD, beside(BESIDE, load(FLOOD, loud)))
            asked = {name: pool.submit(probe, at, seconds) for name, at in ((PROBES, port), (OPS_PROBES, ops_port))}
            overload = legs.wrk(seconds, load(OVERLOAD, loud), may_refuse=True)
            legs.record(f"{OVERLOADING}, {database}", OVERLOAD, overload)
            for name, probes in asked.items():
                legs.record(f"{name}, {database}", ONE, probes.result())
            with urllib.request.urlopen(f"http://127.0.0.1:{ops_port}/metrics", timeout=10) as answer:
                samples = REFUSALS.findall(answer.read().decode())
        in_time += sum(int(count) for _, bound, count in samples if bound == MOST_REFUSAL_S)
        refused += sum(int(count) for kind, _, count in samples if kind == "count")
    return in_time, refused


def probe(port, seconds):
    """Asks whether the server is ready, on a new connection each time, as balancers do."""
    end, ms = time.monotonic() + seconds, []
    while (begin := time.monotonic()) < end:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as answer:
            answer.read()
        ms.append((time.monotonic() - begin) * 1000)
        time.sleep(PROBE_EVERY_S)
    ms.sort()
    return {f"p{part}_ms": ms[len(ms) * part // 100] for part in (50, 95, 99)} | {"per_s": len(ms) / seconds, "done": len(ms)}
