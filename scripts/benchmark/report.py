"""What a run found, for people: the table on the terminal, and a part of docs/BENCHMARKS.md.

Each run writes its own part of the page, between two marks, and leaves the rest. Deliberately absent:
names of machines, paths, and any figure that was not measured in the run.
"""

from datetime import date
from pathlib import Path

import growth_figures
from figures import HEAD, Spread, all_figures, values
from rounds import CLIENTS, FULL_LOAD_CLIENTS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "BENCHMARKS.md"
PLOT = "benchmarks.svg"

SKELETON = f"""# Benchmarks

What the server does end to end (HTTP, JWT, idempotency, credits, usage log, ledger entries, outbox,
durable) beside a transaction per command, measured by turns in one run on one machine. Absolute figures
are those of the machine and of the hour; the ratios are what this page is about.

```sh
scripts/bench             # some twenty minutes; installs what is missing, starts and stops its own servers
scripts/bench --quick     # some three minutes, and rough; leaves this page as it is
scripts/bench growth      # the same with millions of rows in the tables
```

Everything between two marks below is written by these commands. Run them on an idle machine.

![Ratios to the baselines, and latency against clients]({PLOT})

## Side by side

<!-- main: begin -->
<!-- main: end -->

## Growth

<!-- growth: begin -->
<!-- growth: end -->
"""


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def print_table(head, rows):
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip(), flush=True)


def write_part(name, text):
    page = PAGE.read_text() if PAGE.exists() else SKELETON
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    head, rest = page.split(begin)
    _, tail = rest.split(end)
    PAGE.write_text(f"{head}{begin}\n{text.strip()}\n\n{end}{tail}")


def machine(results):
    """The machine and the settings that both sides got, in a paragraph."""
    it, postgres = results["machine"], results["machine"]["postgresql"]
    settings = ", ".join(f"`{name}` = {value}" for name, value in postgres.items() if name != "server_version")
    return (
        f"Measured on {date.today()}: {it['processor']}, {it['cores']} cores, {it['memory_gb']} GB, {it['kernel']}, "
        f"PostgreSQL {postgres['server_version'].split()[0]}, Redis {it['redis']}; everything, the load generator too, "
        f"on this one machine. PostgreSQL is as it comes, for both sides: {settings}. Redis writes its append-only "
        f"file, `appendfsync everysec`."
    )


def main_part(results):
    options = results["options"]
    return "\n\n".join([
        table(HEAD, [figure.cells() for figure in all_figures(results)]),
        machine(results),
        "### Latency", latency_text(results["legs"]),
        "### Processor time per command", cpu_text(results["legs"]),
        "### Publisher", publisher_text(results["legs"]),
        "### How it is measured", METHOD.format(**options),
    ])


def growth_part(results):
    options, sizes = results["options"], results["sizes"]
    parts = [table(head, rows) for head, rows in growth_figures.tables(results)]
    return "\n\n".join([*parts, machine(results), GROWTH_METHOD.format(
        **options, small_size=sizes["small"], big_size=sizes["big"], big_workspaces=results["big_workspaces"])])


def latency_text(legs):
    rows = []
    for clients in CLIENTS:
        cells = [str(clients)]
        for name in ("spread", "pgbench"):
            cells.append(f"{Spread.of(values(legs, name, clients, 'per_s')).median:,.0f}")
            for field in ("p50_ms", "p95_ms", "p99_ms"):
                cells.append(f"{Spread.of(values(legs, name, clients, field)).median:.2f}")
        rows.append(cells)
    head = ["clients", "ours /s", "p50 ms", "p95 ms", "p99 ms", "pgbench /s", "p50 ms", "p95 ms", "p99 ms"]
    return "Deductions spread over 10,000 workspaces, and pgbench at the same number of clients:\n\n" + table(head, rows)


def cpu_text(legs):
    rows = []
    for name, clients, words in [
        ("spread", 1, "ours, 10,000 workspaces"), ("spread", FULL_LOAD_CLIENTS, "ours, 10,000 workspaces"),
        ("hot", FULL_LOAD_CLIENTS, "ours, one workspace"), ("two-replicas", FULL_LOAD_CLIENTS, "ours, two replicas"),
        ("sqlite-spread", FULL_LOAD_CLIENTS, "ours, SQLite, 10,000 workspaces"),
        ("sqlite-hot", FULL_LOAD_CLIENTS, "ours, SQLite, one workspace"),
        ("pgbench", FULL_LOAD_CLIENTS, "pgbench"), ("pgbench-hot", FULL_LOAD_CLIENTS, "pgbench at scale 1"),
    ]:
        found = values(legs, name, clients, "cpu_us")
        part = lambda part: f"{Spread.of([cpu[part] for cpu in found]).median:.0f}" if part in found[0] else "–"
        rows.append([words, str(clients), part("server"), part("database"), part("redis"), part("generator")])
    head = ["load", "clients", "server", "database", "Redis", "generator"]
    return ("Microseconds per answered command, until its event is published; what the processes do while they "
            "idle is in it, which is most of it at one client:\n\n" + table(head, rows))


def publisher_text(legs):
    rows = []
    for name, words in (("spread", "10,000 workspaces"), ("hot", "one workspace")):
        for leg in (leg for leg in legs if leg["name"] == name and leg["clients"] == FULL_LOAD_CLIENTS):
            lag = leg["lag"]
            rows.append([words, str(leg["round"]), f"{leg['per_s']:,.0f}", f"{lag['max_events']:,}"]
                        + [f"{lag[field]:,.0f}" for field in ("first_half_max_ms", "second_half_max_ms", "drain_ms")])
    head = ["load", "round", "events /s", "most waiting", "oldest, 1st half, ms", "oldest, 2nd half, ms", "to drain, ms"]
    return table(head, rows)


METHOD = """\
- {rounds} rounds of {seconds} s per leg, each leg after {warm_up_s} s to warm up; baseline and product by turns. A ratio is
  of a leg and the baseline's leg before it; medians, and the least and the most, are over the rounds.
- `pgbench -M prepared`, TPC-B-like: scale {scale}, and scale 1 for one hot row. It talks to PostgreSQL directly;
  ours goes through HTTP with a token, and also keeps the request's answer, a usage log, a ledger entry and an event.
- Ours: `POST …/credits/deduct`, each with an idempotency key of its own, by wrk with one thread. Each client
  waits for its answer before its next request. An answer other than 2xx ends the run with an error, and the
  deductions in the database are counted against the answers.
- The SQLite baselines are one transaction per command with one update and three inserts, WAL, `synchronous = FULL`,
  one writer, without HTTP. The one through sqlx (`benches/one_transaction.rs`) is what one would write first with
  the crate that the server uses, and the one that the target was set for; its connection is a thread of its own, and
  each statement a message to it. The other is Python's module, in one thread with the database.
- Each round begins with a fresh copy of the database; the server is started for each leg and does not run beside a
  baseline. Checkpoints and vacuum come as PostgreSQL's defaults have it, so a leg may pay for the one before it:
  single ratios vary, and a short run varies more."""

GROWTH_METHOD = """\
- Little data: 10,000 workspaces, 1,000 of them with some history ({small_size} on disk). Much data:
  {big_workspaces:,} workspaces and {rows:,} usage logs, with as many commands, ledger entries and events ({big_size} on disk).
- The ratios are of much data to little, by turns: {rounds} rounds of {seconds} s per leg; medians, and the least and the
  most. Up to 1.15 is within the aim. `time per command` is the throughput's ratio turned round.
- The history is multiplied in SQL from one real deduction; indexes and constraints are those of the migrations.
- Reads pick one of 1,000 workspaces with full pages (50 rows) at random, one page each, while nothing is written."""
