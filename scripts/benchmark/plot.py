"""docs/benchmarks.svg: ratios to their targets, and latency against clients.

Written by hand, without a library; readable on a light and on a dark page. Deliberately absent: any
figure that is not in the page's tables.
"""

from math import log10

from figures import Spread, ratios, values
from rounds import CLIENTS, FULL_LOAD_CLIENTS

WIDTH, HEIGHT = 880, 400
TOP, BOTTOM = 60, 330
STYLE = """
text { font: 13px sans-serif; fill: #24292f }
.title { font-weight: bold; font-size: 15px }
.small { font-size: 11px }
.grid { stroke: #8c959f; stroke-opacity: .35 }
.target { stroke: #cf222e; stroke-width: 2.5 }
.ours { fill: #0969da; stroke: #0969da }
.theirs { fill: #8c959f; stroke: #8c959f }
.line { fill: none; stroke-width: 2 }
.p95 { stroke-dasharray: 7 3 }
.p99 { stroke-dasharray: 2 3 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.ours { fill: #4493f8; stroke: #4493f8 }
.target { stroke: #ff7b72 }
}"""


def svg(legs):
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Ratios to the baselines, and latency against clients">\n<style>{STYLE}</style>\n'
        + "\n".join([*ratio_bars(legs), *latency_lines(legs)]) + "\n</svg>\n"
    )


def text(x, y, words, anchor="middle", kind=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{words}</text>'


def rule(x1, y1, x2, y2, kind):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def ratio_bars(legs):
    """One bar per throughput, a mark at its target."""
    left, right = 50, 400
    full, bars = FULL_LOAD_CLIENTS, []
    for words, ours, baseline, target in [
        ("spread", ("spread", full), ("pgbench", full), 4), ("hot", ("hot", full), ("pgbench-hot", full), 12),
        ("SQLite spread", ("sqlite-spread", full), ("sqlite-sqlx", 1), 5),
        ("SQLite hot", ("sqlite-hot", full), ("sqlite-sqlx", 1), 5),
    ]:
        bars.append((words, ratios(legs, ours, baseline, "per_s").median, target))
    most = max(max(ratio, target) for _, ratio, target in bars) * 1.1
    y = lambda value: BOTTOM - (BOTTOM - TOP) * value / most
    yield text(left, 24, "Throughput, times the baseline's", "start", "title")
    yield text(left, 43, f"{full} clients; the red mark is the target", "start", "small")
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if most / step <= 8)
    for tick in range(0, int(most) + 1, step):
        yield rule(left, y(tick), right, y(tick), "grid")
        yield text(left - 8, y(tick) + 4, f"{tick} ×", "end", "small")
    pitch = (right - left) / len(bars)
    for at, (words, ratio, target) in enumerate(bars):
        x = left + pitch * (at + 0.2)
        yield (f'<rect x="{x:.1f}" y="{y(ratio):.1f}" width="{pitch * 0.6:.1f}" '
               f'height="{BOTTOM - y(ratio):.1f}" class="ours"/>')
        yield rule(x - 5, y(target), x + pitch * 0.6 + 5, y(target), "target")
        is_crossed = 0 <= y(ratio) - y(target) < 22
        yield text(x + pitch * 0.3, (y(target) if is_crossed else y(ratio)) - 6, f"{ratio:.1f} ×")
        yield text(x + pitch * 0.3, BOTTOM + 18, words, kind="small")


def latency_lines(legs):
    """Percentiles against clients, both axes logarithmic."""
    left, right = 490, 860
    lines = [(name, field, [Spread.of(values(legs, name, clients, field)).median for clients in CLIENTS])
             for name in ("spread", "pgbench") for field in ("p50_ms", "p95_ms", "p99_ms")]
    seen = [value for _, _, found in lines for value in found]
    low, high = log10(min(seen) * 0.8), log10(max(seen) * 1.25)
    y = lambda value: BOTTOM - (BOTTOM - TOP) * (log10(value) - low) / (high - low)
    x = lambda at: left + (right - left) * at / (len(CLIENTS) - 1)
    yield text(left, 24, "Latency in ms against clients", "start", "title")
    yield text(left, 43, "10,000 workspaces; solid p50, dashed p95, dotted p99", "start", "small")
    for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000):
        if low <= log10(tick) <= high:
            yield rule(left, y(tick), right, y(tick), "grid")
            yield text(left - 8, y(tick) + 4, f"{tick:g}", "end", "small")
    for at, clients in enumerate(CLIENTS):
        yield text(x(at), BOTTOM + 18, str(clients), kind="small")
    for name, field, found in lines:
        kind = "ours" if name == "spread" else "theirs"
        points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in enumerate(found))
        # As a style, because the class that colours the line fills it too.
        yield f'<polyline points="{points}" class="{kind} line {field[:3]}" style="fill: none"/>'
    for at, (kind, words) in enumerate((("ours", "ours, over HTTP"), ("theirs", "pgbench"))):
        yield f'<rect x="{left + 150 * at}" y="{BOTTOM + 38}" width="14" height="10" class="{kind}"/>'
        yield text(left + 150 * at + 20, BOTTOM + 47, words, "start")
