"""The fairness run: how long a quiet workspace waits alone, and beside one that sends all it can.

The quiet workspace is a single client. The other has more connections than it may have commands in flight, and each
sends its next request as soon as the last was answered or refused. Absent on purpose: Redis.
"""

import secrets
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from rounds import ONE, tuned
from servers import Failure, cluster

PARTS = ("postgres", "sqlite")
FLOOD = 600
ALONE, BESIDE, FLOODING = "quiet alone", "quiet beside a flood", "the flood"
BEFORE_S, BEHIND_S = 1, 1  # the flood begins before what is measured, and ends after it
MAX_REFUSAL_S = 0.01


def measure(legs):
    found = {"postgres": {}, "checks": {}}
    if "postgres" in legs.options.only:
        with cluster(tuned()) as legs.cluster:
            found["postgres"]["tuned"] = legs.cluster.settings
            side_by_side(legs, "PostgreSQL", {"DATABASE_URL": legs.cluster.create("product")}, found)
        legs.cluster = None
    if "sqlite" in legs.options.only:
        path = str(legs.folder / "fairness.db")
        side_by_side(legs, "SQLite", {"VISIONSCOPE__DATABASE__PATH": path}, found)
    return found


def side_by_side(legs, database, settings, found):
    quiet, loud = (legs.deductions_file(name, [id]) for name, id in
                   zip(("quiet", "loud"), legs.product.provision(settings, 2)))
    seconds, refusals = legs.options.seconds, 0
    for _ in legs.rounds(f"a quiet workspace on {database}"):
        with legs.product.server(settings) as (_, port), ThreadPoolExecutor(1) as pool:
            load = lambda clients, paths: (port, clients, paths, secrets.token_hex(8))
            legs.wrk(legs.options.warm_up_s, load(ONE, quiet))
            legs.record(f"{ALONE}, {database}", ONE, legs.wrk(seconds, load(ONE, quiet)))
            flood = pool.submit(legs.wrk, BEFORE_S + seconds + BEHIND_S, load(FLOOD, loud), may_refuse=True)
            time.sleep(BEFORE_S)
            legs.record(f"{BESIDE}, {database}", ONE, legs.wrk(seconds, load(ONE, quiet)))
            legs.record(f"{FLOODING}, {database}", FLOOD, flood.result())
            refusals += check_refusals(port)
    found["checks"][f"{database}: refusals in the server took at most {MAX_REFUSAL_S * 1000:.0f} ms"] = f"{refusals:,} refusals"


def check_refusals(port):
    """How many refusals there were. All of them must have been fast."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("visionscope_http_refusal")]
    total = lambda part: sum(int(line.split()[-1]) for line in lines if part in line)
    count, fast = total("_count"), total(f'le="{MAX_REFUSAL_S}"')
    print("\n".join(lines))
    if fast < count:
        print(f"{count - fast} of {count} refusals took longer than {MAX_REFUSAL_S} s")
    return count
