"""The growth run: the same deductions and reads on little and on much data, by turns, on a tuned PostgreSQL.

In `little data` 1,000 of 10,000 workspaces have some history, so that the pages that are read are full. In `much
data` there are millions of usage logs and events. Absent on purpose: pgbench, and Redis: the events wait, as they
do while Redis is down, so that the time for a command is all that is compared.
"""

import random
from contextlib import ExitStack

from growth_data import fill
from rounds import CLIENTS, ONE, WORKSPACES, tuned
from servers import cluster

PARTS = ("deductions", "reads")
LITTLE, MUCH = "little data", "much data"
READ_WORKSPACES = 1_000
ROWS_EACH = 100  # of a workspace with history: two full pages
VERIFIED_ROWS = 1_000_000  # to verify more takes longer than everything else
ENDPOINTS = {
    "GET credits": "/v1/workspaces/{}/credits", "GET usage": "/v1/workspaces/{}/usage",
    "GET ledger": "/v1/workspaces/{}/ledger", "GET events of a workspace": "/v1/events?workspace_id={}",
    "GET all events": "/v1/events",
}


def measure(legs):
    filled = max(READ_WORKSPACES, legs.options.rows // ROWS_EACH)
    with cluster(tuned()) as legs.cluster:
        found = {"postgres": {"tuned": legs.cluster.settings}, "sizes": {}, "checks": {}}
        sides = {LITTLE: prepare(legs, "little", WORKSPACES, READ_WORKSPACES, found),
                 MUCH: prepare(legs, "much", max(WORKSPACES, filled), filled, found)}
        if "reads" in legs.options.only:
            reads(legs, sides)
        if "deductions" in legs.options.only:
            deductions(legs, sides)
    return found


def prepare(legs, name, workspaces, filled, found):
    """Fills a database. Returns its settings, the ids of all workspaces, and of those with history."""
    print(f"preparing {name} data: {workspaces:,} workspaces, {filled * ROWS_EACH:,} deductions")
    settings = {"DATABASE_URL": legs.cluster.create(name)}
    ids = legs.product.provision(settings, workspaces, deductions=filled)
    size = fill(settings["DATABASE_URL"], ROWS_EACH - 1)
    found["sizes"][name] = f"{workspaces:,} workspaces, {filled * ROWS_EACH:,} usage logs, {size} on disk"
    if filled * ROWS_EACH <= VERIFIED_ROWS:
        found["checks"][f"verify, {name} data"] = legs.product.command("verify", settings=settings)
    return settings, ids, ids[:filled]


def reads(legs, sides):
    """One client reads one page at a time, and nothing is written meanwhile."""
    ids = {load: random.sample(filled, READ_WORKSPACES) for load, (_, _, filled) in sides.items()}
    with ExitStack() as stack:
        ports = {load: stack.enter_context(legs.product.server(side[0]))[1] for load, side in sides.items()}
        for _ in legs.rounds("reads on little and on much data"):
            for endpoint, path in ENDPOINTS.items():
                for load, port in ports.items():
                    paths = legs.lines_file("read", map(path.format, ids[load]))
                    legs.record(f"{endpoint}, {load}", ONE, legs.wrk(legs.options.warm_up_s, (port, ONE, paths)))


def deductions(legs, sides):
    """As many workspaces are active on both sides."""
    paths = {load: legs.deductions_file(load, random.sample(ids, WORKSPACES)) for load, (_, ids, _) in sides.items()}
    for _ in legs.rounds("deductions on little and on much data"):
        copy = legs.cluster.create("little_copy", template="little")  # so that little stays little
        legs.deduct(LITTLE, {"DATABASE_URL": copy}, paths[LITTLE], [CLIENTS])
        legs.deduct(MUCH, sides[MUCH][0], paths[MUCH], [CLIENTS])
        legs.cluster.sql("drop database little_copy")
