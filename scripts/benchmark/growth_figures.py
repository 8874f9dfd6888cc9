"""What the growth run found: ratios of much data to little, against "within 15 %".

Deliberately absent: anything that is measured; see growth.py.
"""

from figures import Spread, ratios, values
from growth import READ_CLIENTS
from rounds import FULL_LOAD_CLIENTS

ALLOWED = 1.15


def verdict(ratio):
    return "met" if ratio.median <= ALLOWED else "NOT met"


def tables(results):
    """(heading, rows) of each table that there is something for."""
    found = [deductions(results), reads(results["reads"])]
    return [(head, rows) for head, rows in found if rows]


def deductions(results):
    legs, full, rows = results["legs"], FULL_LOAD_CLIENTS, []
    for words, ours, baseline in [
        ("much data, 10,000 workspaces of it", "big-some", "small"),
        (f"much data, all {results['big_workspaces']:,} workspaces of it", "big", "small"),
        ("one workspace, 1,000 grants against one", "many-grants", "one-grant"),
    ]:
        # Time is what may not grow, so a throughput's ratio is turned round.
        time = slowdown(legs, ours, baseline)
        if not time:
            continue
        work, p99 = (ratios(legs, (ours, full), (baseline, full), field) for field in ("work_us", "p99_ms"))
        of = lambda name, field, digits: Spread.of(values(legs, name, full, field)).text(digits)
        rows.append([words, time.text(2), verdict(time), work.text(2), verdict(work), p99.text(2),
                     of(baseline, "per_s", 0), of(ours, "per_s", 0), of(baseline, "work_us", 0), of(ours, "work_us", 0)])
    head = [f"deductions, {full} clients", "time per command, ratio", "", "processor time, ratio", "", "p99, ratio",
            "little: /s", "much: /s", "little: CPU µs", "much: CPU µs"]
    return head, rows


def slowdown(legs, ours, baseline):
    ratio = ratios(legs, (ours, FULL_LOAD_CLIENTS), (baseline, FULL_LOAD_CLIENTS), "per_s")
    return ratio and Spread(1 / ratio.median, 1 / ratio.most, 1 / ratio.least)


def reads(found):
    rows = []
    for endpoint in dict.fromkeys(leg["endpoint"] for leg in found):
        legs = [leg for leg in found if leg["endpoint"] == endpoint]
        for clients in READ_CLIENTS:
            p50, p99 = (ratios(legs, ("big", clients), ("small", clients), field) for field in ("p50_ms", "p99_ms"))
            of = lambda name, field: f"{Spread.of(values(legs, name, clients, field)).median:.2f}"
            rows.append([endpoint, str(clients), p50.text(2), p99.text(2), verdict(p99), of("small", "p50_ms"),
                         of("big", "p50_ms"), of("small", "p99_ms"), of("big", "p99_ms")])
    head = ["reads", "clients", "p50, ratio", "p99, ratio", "", "little: p50 ms", "much: p50 ms", "little: p99 ms",
            "much: p99 ms"]
    return head, rows
