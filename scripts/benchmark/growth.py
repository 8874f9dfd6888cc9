"""The growth run: the same loads on little and on much data, by turns.

`small` has 10,000 workspaces, of which 1,000 have some history, so that the pages that are read are full.
`big` has millions of usage logs and events. Both are in one cluster; Redis gets the last event of each
partition before each leg, which is all that a publisher asks of what it published before. Deliberately
absent: pgbench, which has nothing to do with it.
"""

import http.client
import json
import random
from contextlib import closing

from growth_data import fill
from legs import Legs, say
from load import read
from postgres import Session
from processes import Failure
from product import Server, provision
from rounds import FULL_LOAD_CLIENTS

GROUPS = ("tables", "grants", "reads")
SMALL_WORKSPACES = 10_000
READ_WORKSPACES = 1_000
ROWS_EACH = 100  # of a workspace with history: two full pages; fewer where there are few rows
GRANTS = 1_000  # the most that a workspace may have open
READ_CLIENTS = (1, 8)
CURSORS = 20
AUDIT_ROWS = 1_000_000  # beyond, an audit takes longer than everything else
LAST_EVENTS = """
select format('vs:{p%s}:g%s', lpad(l.partition::text, 2, '0'), l.generation), o.seq || '-0', o.event_id
from stream_lease l
cross join lateral (
    select coalesce(max(b.seq_to), 0) as seq from stream_batch b
    where b.partition = l.partition and b.generation = l.generation
) published
join event_outbox o on o.partition = l.partition and o.seq = published.seq"""


class GrowthRun:
    def __init__(self, options, cluster, redis, product, folder):
        self.options, self.cluster, self.redis, self.product, self.folder = options, cluster, redis, product, folder
        self.legs = Legs(options, cluster, redis, product, folder)
        self.reads = []
        self.big_workspaces = max(SMALL_WORKSPACES, options.rows // ROWS_EACH)
        self.sizes = {}

    def measure(self):
        chosen = self.options.only
        each = min(ROWS_EACH, max(1, self.options.rows // self.big_workspaces))
        small = self.prepare("small", SMALL_WORKSPACES, READ_WORKSPACES, each)
        if "grants" in chosen:
            self.grants(small)
        if chosen & {"tables", "reads"}:
            big = self.prepare("big", self.big_workspaces, self.big_workspaces, each)
        if "reads" in chosen:
            self.read_all(small, big)
        if "tables" in chosen:
            self.tables(small, big)
        return {"legs": self.legs.found, "reads": self.reads, "sizes": self.sizes,
                "big_workspaces": self.big_workspaces}

    def prepare(self, name, workspaces, filled, rows_each):
        """A database with so many workspaces, of which the first have so many deductions each."""
        say(f"{name}: {workspaces:,} workspaces, {filled * rows_each:,} deductions")
        url = self.cluster.create(name)
        settings = {"DATABASE_URL": url}
        server = Server(self.product, name, settings)
        try:
            ids = sorted(provision(server, self.legs.token, workspaces))
            pattern = {"feature_code": "text.generate", "credits": "0.25", "user_id": "user-7"}
            server.send_all(self.legs.token, [("POST", f"/v1/workspaces/{ids[0]}/credits/deduct", pattern, "pattern")])
        finally:
            server.stop()
        self.sizes[name] = fill(url, filled, rows_each)
        if filled * rows_each <= AUDIT_ROWS:
            say(f"  visionscope verify: {self.product.command('verify', settings=settings).strip()}")
        return settings | {"name": name, "ids": ids, "filled": filled}

    def lines_file(self, name, lines):
        path = self.folder / name
        path.write_text("\n".join(lines) + "\n")
        return path

    def leg(self, name, url, ids_file):
        """With Redis, as in production."""
        self.redis.empty()
        with closing(Session(url)) as session:
            for stream, entry, event_id in session.rows(LAST_EVENTS):
                self.redis.command("XADD", stream, entry, "event_id", event_id)
        self.legs.product(name, {"DATABASE_URL": url, "REDIS_URL": self.redis.url}, ids_file, [FULL_LOAD_CLIENTS])

    def rounds(self, what):
        for self.legs.round in range(1, self.options.rounds + 1):
            say(f"round {self.legs.round} of {self.options.rounds}: {what}")
            yield

    def tables(self, small, big):
        files = {name: self.lines_file(f"deduct-{name}", ids) for name, ids in (
            ("small", small["ids"]), ("big-some", random.sample(big["ids"], SMALL_WORKSPACES)), ("big", big["ids"]))}
        for _ in self.rounds("deductions on little and on much data"):
            copy = f"small_{self.legs.round}"  # or it would grow as well
            url = self.cluster.create(copy, template="small")
            self.leg("small", url, files["small"])
            self.leg("big-some", big["DATABASE_URL"], files["big-some"])
            self.leg("small", url, files["small"])
            self.leg("big", big["DATABASE_URL"], files["big"])
            self.cluster.drop(copy)

    def grants(self, small):
        """One workspace with one grant, and one with as many as it may have."""
        url = self.cluster.create("grants", template="small")
        one, many = small["ids"][-2:]
        path = f"/v1/workspaces/{many}/credits/purchase"
        purchase = {"credits": "1000", "amount_minor": 100, "currency": "EUR"}
        server = Server(self.product, "grants", {"DATABASE_URL": url})
        try:
            server.send_all(self.legs.token, (
                ("POST", path, purchase | {"payment_reference": f"pay_{at}"}, f"buy-{at}") for at in range(1, GRANTS)
            ))
        finally:
            server.stop()
        with closing(Session(url)) as session:
            found = int(session.value(f"select count(*) from credit_grants where workspace_id = '{many}' and is_open"))
            session.rows("vacuum analyze")
        if found != GRANTS:
            raise Failure(f"the workspace has {found} open grants")
        for _ in self.rounds(f"one grant and {GRANTS:,} on a hot workspace"):
            self.leg("one-grant", url, self.lines_file("one", [one]))
            self.leg("many-grants", url, self.lines_file("many", [many]))
        self.cluster.drop("grants")

    def read_all(self, small, big):
        servers = {}
        # Nothing to publish and nothing due: what runs beside a read is that read.
        quiet = {"VISIONSCOPE__PUBLISHER__ENABLED": "false", "VISIONSCOPE__SCHEDULER__ENABLED": "false"}
        try:
            for side in (small, big):
                settings = quiet | {"DATABASE_URL": side["DATABASE_URL"]}
                servers[side["name"]] = Server(self.product, side["name"], settings)
            files = {side["name"]: self.read_files(servers[side["name"]], side) for side in (small, big)}
            seconds = max(1, self.options.seconds // 3)
            for _ in self.rounds("reads on little and on much data"):
                for endpoint in files["small"]:
                    for clients in READ_CLIENTS:
                        for name, server in servers.items():
                            self.read(name, server, endpoint, files[name][endpoint], clients, seconds)
        finally:
            for server in servers.values():
                server.stop()

    def read(self, name, server, endpoint, paths_file, clients, seconds):
        load = read(server.port, clients, seconds, self.legs.token_file, paths_file)
        try:
            result = load.result()
        finally:
            load.stop()
        self.reads.append({"name": name, "round": self.legs.round, "endpoint": endpoint, "clients": clients} | result)
        say(f"  {name:<6} {endpoint:<22} {clients:>2} clients {result['per_s']:>8.0f}/s  "
            f"p50 {result['p50_ms']:.2f} p99 {result['p99_ms']:.2f} ms")

    def read_files(self, server, side):
        """The paths of each endpoint, of workspaces that have full pages."""
        ids = random.sample(side["ids"][:side["filled"]], READ_WORKSPACES)
        cursors = self.cursors(server)
        paths = {
            "GET credits": [f"/v1/workspaces/{id}/credits" for id in ids],
            "GET subscription": [f"/v1/workspaces/{id}/subscription" for id in ids],
            "GET usage": [f"/v1/workspaces/{id}/usage" for id in ids],
            "GET ledger": [f"/v1/workspaces/{id}/ledger" for id in ids],
            "GET events?workspace_id": [f"/v1/events?workspace_id={id}" for id in ids],
            "GET events?after": [f"/v1/events?after={cursor}" for cursor in cursors],
        }
        return {endpoint: self.lines_file(f"read-{side['name']}-{at}", lines)
                for at, (endpoint, lines) in enumerate(paths.items())}

    def cursors(self, server):
        """Of the first pages of all events: a page costs the same wherever it begins."""
        found, query = [], ""
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
            for _ in range(CURSORS):
                headers = {"Authorization": f"Bearer {self.legs.token}"}
                connection.request("GET", f"/v1/events?limit=200{query}", headers=headers)
                answer = connection.getresponse()
                page = json.loads(answer.read())
                if answer.status != 200 or not page.get("next"):
                    raise Failure(f"no page of events: {answer.status} {str(page)[:300]}")
                found.append(page["next"])
                query = f"&after={page['next']}"
        return found
