"""From legs to figures: medians over rounds, ratios of neighbours, and what was to be reached.

A ratio is taken of each leg of the product and the last leg of its baseline before it, and then the
median of those; so a machine that drifts during a run moves both. Deliberately absent: averages, and
leaving out any round.
"""

from dataclasses import dataclass
from statistics import median

from rounds import CLIENTS, FULL_LOAD_CLIENTS

# A lag that is longer in the second half of a run than in the first, by more than a hiccup, grows.
GROWTH_FACTOR = 1.5
HICCUP_MS = 250


@dataclass
class Spread:
    """A median, and the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values):
        return cls(median(values), min(values), max(values)) if values else None

    def text(self, digits=0):
        if self.least == self.most:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.least:,.{digits}f}–{self.most:,.{digits}f})"


@dataclass
class Figure:
    """A line of the table. What has no baseline has no ratio."""

    name: str
    ours: str
    baseline: str
    ratio: Spread | None
    target: str
    met: bool

    def cells(self):
        ratio = self.ratio.text(2) + " ×" if self.ratio else "–"
        return [self.name, ratio, self.target, "met" if self.met else "NOT met", self.ours, self.baseline]


HEAD = ["figure", "ratio: median (least–most)", "target", "", "ours", "baseline"]


def values(legs, name, clients, field):
    return [leg[field] for leg in legs if (leg["name"], leg["clients"]) == (name, clients)]


def ratios(legs, ours, baseline, field):
    """`ours` and `baseline` are (name, clients)."""
    found, last = [], None
    for leg in legs:
        key = (leg["name"], leg["clients"])
        if key == baseline:
            last = leg[field]
        elif key == ours and last:
            found.append(leg[field] / last)
    return Spread.of(found)


def all_figures(results):
    legs = results["legs"]
    found = [*throughput(legs), *latency(legs), *publisher(legs), *memory(legs), *replicas(legs, results["checks"])]
    return [figure for figure in found if figure]


def on_sqlite(how, baseline):
    for workspaces, ours in (("10,000 workspaces", "sqlite-spread"), ("one workspace", "sqlite-hot")):
        yield f"SQLite, {workspaces}, against {how}", (ours, FULL_LOAD_CLIENTS), (baseline, 1), 5


def throughput(legs):
    full = FULL_LOAD_CLIENTS
    for name, ours, baseline, least in [
        (f"10,000 workspaces, {full} clients, against pgbench", ("spread", full), ("pgbench", full), 4),
        (f"one workspace, {full} clients, against pgbench at scale 1", ("hot", full), ("pgbench-hot", full), 12),
        *on_sqlite("a transaction a command through sqlx", "sqlite-sqlx"),
        *on_sqlite("the same without a driver", "sqlite-process"),
    ]:
        ratio = ratios(legs, ours, baseline, "per_s")
        if ratio:
            of = lambda key: Spread.of(values(legs, *key, "per_s")).text() + " /s"
            yield Figure(name, of(ours), of(baseline), ratio, f"at least {least} ×", ratio.median >= least)


def latency(legs):
    ratio = ratios(legs, ("spread", 1), ("pgbench", 1), "p50_ms")
    if ratio:
        of = lambda name: Spread.of(values(legs, name, 1, "p50_ms")).text(2) + " ms"
        name = "p50 of a single client, against pgbench"
        yield Figure(name, of("spread"), of("pgbench"), ratio, "at most 1.5 ×", ratio.median <= 1.5)
    for name, words in (("spread", "10,000 workspaces"), ("hot", "one workspace")):
        p99 = Spread.of(values(legs, name, FULL_LOAD_CLIENTS, "p99_ms"))
        if p99:
            name = f"p99 at {FULL_LOAD_CLIENTS} clients, {words}"
            yield Figure(name, p99.text(1) + " ms", "–", None, "at most 25 ms", p99.median <= 25)


def publisher(legs):
    lags = [leg["lag"] for leg in legs if leg["name"] in ("spread", "hot") and leg["clients"] == FULL_LOAD_CLIENTS]
    if lags:
        grew = [lag for lag in lags
                if lag["second_half_max_ms"] > max(HICCUP_MS, lag["first_half_max_ms"] * GROWTH_FACTOR)]
        worst = max(lag["max_ms"] for lag in lags)
        drain = max(lag["drain_ms"] for lag in lags)
        ours = f"at most {worst:,.0f} ms behind, {drain:,.0f} ms to drain"
        name = f"publisher's lag at {FULL_LOAD_CLIENTS} clients"
        yield Figure(name, ours, "–", None, "bounded, no growth", not grew)


def memory(legs):
    idle = Spread.of([leg["idle_mb"] for leg in legs if leg.get("idle_mb") and leg["name"] == "spread"])
    peak = Spread.of([leg["peak_mb"] for leg in legs if leg["name"] in ("spread", "hot")])
    if idle:
        yield Figure("memory, idle", idle.text(1) + " MB", "–", None, "at most 40 MB", idle.most <= 40)
    if peak:
        name = f"memory, the most at up to {max(CLIENTS)} clients"
        yield Figure(name, f"{peak.most:.1f} MB", "–", None, "at most 150 MB", peak.most <= 150)


def replicas(legs, checks):
    full = FULL_LOAD_CLIENTS
    ratio = ratios(legs, ("two-replicas", full), ("one-replica", full), "per_s")
    if ratio:
        of = lambda name: Spread.of(values(legs, name, full, "per_s")).text() + " /s"
        yield Figure("two replicas on one database, against one", of("two-replicas"), of("one-replica"), ratio,
                     "at least 1 ×", ratio.median >= 1)
        # Both commands end with an error when they find anything, and so would the run.
        yield Figure("two replicas: invariants and streams", " ".join(checks.values()), "–", None, "hold", True)
