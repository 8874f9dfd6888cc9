"""The fairness run: how long a quiet workspace waits alone, and beside one that sends all it can.

The quiet workspace is a single client. Each connection of the other sends its next request as soon as the last was
answered or refused. At the end it has more connections than it may have commands in flight, so that many are refused.
Absent on purpose: Redis, and clients that wait before they send again.
"""

import re
import secrets
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from rounds import ONE, tuned
from servers import cluster

PARTS = ("postgres", "sqlite")
FLOOD, OVERLOAD = 600, 2500
ALONE, BESIDE, FLOODING, OVERLOADING = "quiet alone", "quiet beside a flood", "the flood", "an overload"
BEFORE_S, AFTER_S = 1, 1  # the flood begins before what is measured, and ends after it
REFUSALS = re.compile(r'visionscope_http_refusal_seconds_(count|bucket)\{reason="[^"]*"(?:,le="([^"]*)")?\} (\d+)')
MOST_REFUSAL_S = "0.01"  # a bucket of the histogram


def measure(legs):
    found = {"postgres": {}, "checks": {}, "refusals": {}}
    if "postgres" in legs.options.only:
        with cluster(tuned()) as legs.cluster:
            found["postgres"]["tuned"] = legs.cluster.settings
            settings = {"DATABASE_URL": legs.cluster.create("product")}
            found["refusals"]["PostgreSQL"] = side_by_side(legs, "PostgreSQL", settings)
        legs.cluster = None
    if "sqlite" in legs.options.only:
        settings = {"VISIONSCOPE__DATABASE__PATH": str(legs.folder / "fairness.db")}
        found["refusals"]["SQLite"] = side_by_side(legs, "SQLite", settings)
    return found


def side_by_side(legs, database, settings):
    """Measures all loads, and returns how many requests were refused in time, and how many at all."""
    quiet, loud = (legs.deductions_file(name, [id])
                   for name, id in zip(("quiet", "loud"), legs.product.provision(settings, 2)))
    seconds, in_time, refused = legs.options.seconds, 0, 0
    load = lambda clients, paths: (port, clients, paths, secrets.token_hex(8))
    for _ in legs.rounds(f"a quiet workspace on {database}"):
        with legs.product.server(settings) as (_, port), ThreadPoolExecutor(1) as pool:
            legs.wrk(legs.options.warm_up_s, load(ONE, quiet))
            legs.record(f"{ALONE}, {database}", ONE, legs.wrk(seconds, load(ONE, quiet)))
            flood = pool.submit(legs.wrk, BEFORE_S + seconds + AFTER_S, load(FLOOD, loud), may_refuse=True)
            time.sleep(BEFORE_S)
            legs.record(f"{BESIDE}, {database}", ONE, legs.wrk(seconds, load(ONE, quiet)))
            legs.record(f"{FLOODING}, {database}", FLOOD, flood.result())
            overload = legs.wrk(seconds, load(OVERLOAD, loud), may_refuse=True)
            legs.record(f"{OVERLOADING}, {database}", OVERLOAD, overload)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                samples = REFUSALS.findall(answer.read().decode())
        in_time += sum(int(count) for _, bound, count in samples if bound == MOST_REFUSAL_S)
        refused += sum(int(count) for kind, _, count in samples if kind == "count")
    return in_time, refused
