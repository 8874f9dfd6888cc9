"""What a run found, held against what is to be reached: on the terminal, and in docs/BENCHMARKS.md.

A ratio is of a leg and its baseline's last leg before it. Shown are the median of the rounds, the least and the
most. Absent on purpose: averages, leaving out any round, and the name of the machine.
"""

import os
import platform
import re
from datetime import date
from pathlib import Path
from statistics import median

from consumers import CONSUMERS, FULL, HALF, PAUSED, RUNNING
from fairness import ALONE, BESIDE, ELSEWHERE, OPS_PROBES, PROBES
from growth import ENDPOINTS, LITTLE, MUCH
from holds import CAPTURES, DEDUCTIONS, HOLDS
from jobs import BESIDE as BESIDE_JOBS
from jobs import COMPLETED, FEW_WAIT, IDLE_WORKERS, MANY_READY, MANY_WAIT, METERED, NO_WORKERS, PLAIN, WORKERS
from rounds import (CAREFUL, CLIENTS, HOT, MANY, ONE, ONE_REPLICA, SPREAD, SQLITE, SQLITE_HOT, SQLITE_SPREAD, TPCB,
                    TPCB_HOT, TWO_REPLICAS, UNTUNED)
from servers import ROOT

PAGE = ROOT / "docs/BENCHMARKS.md"
MOST_IDLE_MB = 40
LEAST_IN_TIME = 0.999  # of the refusals: a processor that others use as well stops a thread for longer
LEAST_FOLDED = {("PostgreSQL", "analytics"): 20_000, ("PostgreSQL", "billing"): 10_000}  # events a second
MOST_CATCH_UP_S = 2
LEAST_JOBS = {  # a second
    f"{PLAIN} {COMPLETED}, PostgreSQL": 2000, f"{METERED} {COMPLETED}, PostgreSQL": 1000,
    f"{METERED} {COMPLETED}, {BESIDE_JOBS}, SQLite": 500,
}
MOST_IDLE_PERCENT = 5  # of a processor
MOST_FIRST_S = 1
MOST_LAG_MS = 1000  # a publisher that can do nine tenths of the load is this late after ten seconds
BUSY_LOAD = 0.25  # of each processor, before the run
BUSY_ROUNDS = 1.25  # the best round of a baseline over its worst

# (figure, our load and clients, the baseline's, what is compared, and the ratio that is to be reached, if any)
FIGURES = {"main": [
    (f"{SPREAD}{UNTUNED} / TPC-B", (SPREAD + UNTUNED, CLIENTS), (TPCB + UNTUNED, CLIENTS), "per_s", "≥ 1.8"),
    (f"{SPREAD}{UNTUNED} / {CAREFUL}", (SPREAD + UNTUNED, CLIENTS), (CAREFUL + UNTUNED, CLIENTS), "per_s", "≥ 1.6"),
    (f"{SPREAD} / TPC-B", (SPREAD, CLIENTS), (TPCB, CLIENTS), "per_s", ""),
    (f"{SPREAD} / {CAREFUL}", (SPREAD, CLIENTS), (CAREFUL, CLIENTS), "per_s", ""),
    (f"{SPREAD} / TPC-B, {MANY} clients", (SPREAD, MANY), (TPCB, MANY), "per_s", "≥ 3"),
    (f"{HOT} / {TPCB_HOT}", (HOT, CLIENTS), (TPCB_HOT, CLIENTS), "per_s", "≥ 8"),
    (f"p50: {SPREAD} / TPC-B, a single client", (SPREAD, ONE), (TPCB, ONE), "p50_ms", "≤ 1.5"),
    (f"p99: {SPREAD} / TPC-B", (SPREAD, CLIENTS), (TPCB, CLIENTS), "p99_ms", "≤ 1"),
    (f"p99: {HOT} / {TPCB_HOT}", (HOT, CLIENTS), (TPCB_HOT, CLIENTS), "p99_ms", "≤ 1"),
    (f"{SQLITE_SPREAD} / {SQLITE}", (SQLITE_SPREAD, CLIENTS), (SQLITE, ONE), "per_s", "≥ 1.2"),
    (f"{SQLITE_HOT} / {SQLITE}", (SQLITE_HOT, CLIENTS), (SQLITE, ONE), "per_s", "≥ 3"),
    (f"{TWO_REPLICAS} / {ONE_REPLICA}", (TWO_REPLICAS, CLIENTS), (ONE_REPLICA, CLIENTS), "per_s", "≥ 0.6"),
], "growth": [
    (f"time per command: {MUCH} / {LITTLE}", (MUCH, CLIENTS), (LITTLE, CLIENTS), "each_ms", "≤ 1.3"),
    (f"p99: {MUCH} / {LITTLE}", (MUCH, CLIENTS), (LITTLE, CLIENTS), "p99_ms", ""),
    *((f"{field[:3]}: {endpoint}", (f"{endpoint}, {MUCH}", ONE), (f"{endpoint}, {LITTLE}", ONE), field, "")
      for endpoint in ENDPOINTS for field in ("p50_ms", "p99_ms")),
], "fairness": [
    (f"p99: {BESIDE} / {than}, {database}", (f"{BESIDE}, {database}", ONE), (f"{baseline}, {database}", ONE), "p99_ms", aim)
    for database in ("PostgreSQL", "SQLite")
    for than, baseline, aim in (("alone", ALONE, "≤ 3"), ("of another server", ELSEWHERE, "≤ 1.5"))
] + [
    (f"{field[:3]}: {OPS_PROBES} / main port, {database}", (f"{OPS_PROBES}, {database}", ONE),
     (f"{PROBES}, {database}", ONE), field, "")
    for database in ("PostgreSQL", "SQLite") for field in ("p50_ms", "p99_ms")
], "holds": [
    (f"{ours} / {DEDUCTIONS}, {database}", (f"{ours}, {database}", CLIENTS), (f"{DEDUCTIONS}, {database}", CLIENTS),
     "per_s", aim)
    for database in ("PostgreSQL", "SQLite") for ours, aim in ((HOLDS, "≥ 0.5"), (CAPTURES, "≥ 0.5"))
], "consumers": [
    (f"{name}{load}: {RUNNING} / {PAUSED}, {database}", (f"{load}, {RUNNING}, {database}", CLIENTS),
     (f"{load}, {PAUSED}, {database}", CLIENTS), field, aim)
    for database in ("PostgreSQL", "SQLite")
    for name, load, field, aim in (("", FULL, "per_s", "≥ 0.7"), ("p99: ", HALF, "p99_ms", "≤ 1.1"))
], "jobs": [
    (f"{name}: {load} / {FEW_WAIT}", (f"{COMPLETED}, {load}", WORKERS), (f"{COMPLETED}, {FEW_WAIT}", WORKERS), field, aim)
    for load in (MANY_READY, MANY_WAIT)
    for name, field, aim in (("time per job", "each_ms", "≤ 1.2"), ("p50 of a lease", "p50_ms", "≤ 1.2"))
]}
HEAD = ["figure: ours / baseline", "ratio", "to reach", "", "ours", "baseline"]
COMMANDS = {"main": "scripts/bench", "growth": "scripts/bench growth", "fairness": "scripts/bench fairness",
            "holds": "scripts/bench holds", "consumers": "scripts/bench consumers", "jobs": "scripts/bench jobs"}
UNITS = {"per_s": (0, "/s"), "each_ms": (3, "ms"), "p50_ms": (2, "ms"), "p99_ms": (2, "ms")}


def spread(values, digits, unit):
    between = f" ({min(values):,.{digits}f}–{max(values):,.{digits}f})" if len(values) > 1 else ""
    return f"{median(values):,.{digits}f}{between} {unit}"


def table(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def verdict(is_reached):
    return "met" if is_reached else "**NOT met**"


def legs_of(legs, key):
    return [leg for leg in legs if (leg["load"], leg["clients"]) == key]


def ratio_rows(what, legs):
    value = lambda leg, field: 1000 / leg["per_s"] if field == "each_ms" else leg[field]
    for name, ours, baseline, field, aim in FIGURES[what]:
        ratios, last = [], None
        for leg in legs:
            key = (leg["load"], leg["clients"])
            if key == baseline:
                last = value(leg, field)
            elif key == ours and last:
                ratios.append(value(leg, field) / last)
        if ratios:
            sign, _, bound = aim.partition(" ")
            reached = aim and verdict(median(ratios) >= float(bound) if sign == "≥" else median(ratios) <= float(bound))
            values = ([value(leg, field) for leg in legs_of(legs, key)] for key in (ours, baseline))
            cells = (spread(found, *UNITS[field]) for found in values)
            yield [name, spread(ratios, 2, "×"), aim and f"{aim} ×", reached, *cells]


def folding_rows(folding):
    """How many events the consumers fold, and how far they are behind."""
    for database, found in folding.items():
        for consumer in CONSUMERS:
            events, seconds = found[consumer]
            per_s, least = events / seconds, LEAST_FOLDED.get((database, consumer))
            reached = least and verdict(per_s >= least)
            yield [f"{consumer} alone, {database}", "", f"≥ {least:,}/s" if least else "", reached or "",
                   f"{per_s:,.0f} events/s of {events:,}", ""]
        caught_up_s, lag = found["lag"]
        yield [f"caught up after {FULL}, {database}", "", f"≤ {MOST_CATCH_UP_S} s", verdict(caught_up_s <= MOST_CATCH_UP_S),
               f"{caught_up_s:.2f} s, {lag:,} events", ""]
        events, first, second = found["rebuild"]
        yield [f"analytics made again beside {HALF}, {database}", f"{second / first:.2f} × (second half / first)", "", "",
               f"{first + second:,.0f} s, {events / (first + second):,.0f} events/s of {events:,}", ""]


def job_rows(legs, idle, first):
    """How many jobs are completed, what idle workers cost, and how long a first job waits."""
    for load, least in LEAST_JOBS.items():
        found = legs_of(legs, (load, WORKERS))
        if found:
            per_s = [leg["per_s"] for leg in found]
            used = [leg["cpu_us"]["generator"] / sum(leg["cpu_us"].values()) for leg in found]
            text = f"{spread(per_s, *UNITS['per_s'])}; {median(used):.0%} of the processor time is the load's"
            yield [load, "", f"≥ {least:,} /s", verdict(median(per_s) >= least), text, ""]
    for state in (name for name in (idle[0] if idle else {}) if name != NO_WORKERS):
        more = [[ours - alone for ours, alone in zip(percent[state], percent[NO_WORKERS])] for percent in idle]
        text = ", ".join(f"{part} {spread(found, 1, '%')}" for part, found in zip(("server", "database"), zip(*more)))
        reached = verdict(median(found[0] for found in more) < MOST_IDLE_PERCENT)
        name = f"{IDLE_WORKERS} idle: {state}, of a processor"
        yield [name, "", f"< {MOST_IDLE_PERCENT} % (server)", reached, text, ""]
    for name, waits in first.items():
        waits = sorted(waits)
        text = f"p50 {waits[len(waits) // 2] * 1000:,.0f} ms, the most {waits[-1] * 1000:,.0f} ms, of {len(waits)}"
        yield [f"a first job is leased, {name}", "", f"< {MOST_FIRST_S} s", verdict(waits[-1] < MOST_FIRST_S), text, ""]


def other_rows(legs, checks, refusals):
    """What has no baseline."""
    lags = [leg for leg in legs if leg["load"] in (SPREAD, HOT) and leg["clients"] == CLIENTS and leg["lag"]]
    if lags:
        events, age_ms = (max(sample[at] for leg in lags for sample in leg["lag"]) for at in (0, 1))
        text = f"{age_ms:,.0f} ms, {events:,.0f} events; caught up in {max(leg['drain_ms'] for leg in lags):,.0f} ms"
        yield ["publisher's lag, the most", "", f"≤ {MOST_LAG_MS:,} ms", verdict(age_ms <= MOST_LAG_MS), text, ""]
    idle, peak = ([leg[field] for leg in legs if field in leg] for field in ("idle_mb", "peak_mb"))
    if idle:
        reached = verdict(max(idle) <= MOST_IDLE_MB)
        yield ["memory, idle", "", f"≤ {MOST_IDLE_MB} MB", reached, spread(idle, 1, "MB"), ""]
        yield ["memory, the most", "", "", "", f"{max(peak):.1f} MB", ""]
    for database, (in_time, refused) in refusals.items():
        reached = refused and verdict(in_time / refused >= LEAST_IN_TIME)
        text = f"{in_time:,} of {refused:,}"
        yield [f"refusals within 10 ms in the server, {database}", "", f"≥ {LEAST_IN_TIME:.1%}", reached or "", text, ""]
    for command, answer in checks.items():  # it ends with an error, and the run too, if anything is wrong
        yield [f"`visionscope {command}`", "", "holds", "met", answer, ""]


def figures(results):
    rest = other_rows(results["legs"], results["checks"], results.get("refusals", {}))
    folding = folding_rows(results.get("folding", {}))
    jobs = job_rows(results["legs"], results.get("idle", []), results.get("first", {}))
    return table([HEAD, *jobs, *ratio_rows(results["what"], results["legs"]), *folding, *rest])


def loads(legs):
    """The medians of everything that was measured of each load."""
    parts = ("server", "database", "redis", "generator")
    rows = [["load", "clients", "/s", "p50 ms", "p95 ms", "p99 ms", *(f"CPU µs: {part}" for part in parts)]]
    for load, clients in dict.fromkeys((leg["load"], leg["clients"]) for leg in legs):
        same = legs_of(legs, (load, clients))
        middle = lambda values, digits: f"{median(values):,.{digits}f}" if None not in values else ""
        rows.append([
            load, str(clients), middle([leg["per_s"] for leg in same], 0),
            *(middle([leg.get(field) for leg in same], 2) for field in ("p50_ms", "p95_ms", "p99_ms")),
            *(middle([leg["cpu_us"].get(part) for leg in same], 0) for part in parts),
        ])
    return table(rows)


def host(results):
    """Whether the host had other work."""
    before = results["load_average"]
    baselines = ((TPCB, CLIENTS), (TPCB + UNTUNED, CLIENTS), (SQLITE, ONE), (LITTLE, CLIENTS),
                 (f"{COMPLETED}, {FEW_WAIT}", WORKERS))
    per_s = [[leg["per_s"] for leg in legs_of(results["legs"], key)] for key in baselines]
    rounds = max((max(found) / min(found) for found in per_s if found), default=1)
    is_busy = before / os.cpu_count() > BUSY_LOAD or rounds > BUSY_ROUNDS
    return (f"**The host was {'busy: these figures say little' if is_busy else 'quiet'}.** Before the run the load "
            f"average was {before:.2f}. The best round of a baseline was {rounds:.2f} times its worst.")


def machine(results):
    processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return "\n".join([
        f"Measured with `{COMMANDS[results['what']]}` on {date.today()}: {results['rounds']} rounds of {results['seconds']} "
        f"s for each load, on {os.cpu_count()} processors ({processor[1] if processor else platform.machine()}), "
        f"{memory_gb:.1f} GB, Linux {platform.release().split('-')[0]}. {host(results)}", "",
        *(f"- PostgreSQL {which}: " + ", ".join(f"`{name}` {value}" for name, value in settings.items())
          for which, settings in results["postgres"].items()),
        *(f"- {name} data: {size}" for name, size in results.get("sizes", {}).items()),
    ])


def write_page(results):
    """Writes the part of the page between the two marks of this run."""
    text = "\n\n".join([machine(results), figures(results), "Medians of everything measured:", loads(results["legs"])])
    begin, end = (f"<!-- {results['what']}: {mark} -->" for mark in ("begin", "end"))
    head, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")
