"""scripts/bench, once everything is installed and built: options, what is started, what is written.

Deliberately absent: starting PostgreSQL and Redis, which is scripts/with-servers' work.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import growth
import growth_figures
import plot
import report
from figures import HEAD, all_figures
from machine import describe
from postgres import Cluster
from processes import Failure
from product import Product
from redis_server import Redis
from rounds import GROUPS, MainRun


def options_of(words):
    description = "Measures the server beside a transaction per command."
    parser = argparse.ArgumentParser(prog="scripts/bench", description=description)
    parser.add_argument("what", nargs="?", choices=("main", "growth"), default="main",
                        help="main: side by side with pgbench and SQLite; growth: with much data in the tables")
    parser.add_argument("--quick", action="store_true", help="some three minutes: does it work, and roughly where is it")
    parser.add_argument("--rounds", type=int, help="rounds, each of all legs (3; quick: 2)")
    parser.add_argument("--seconds", type=int, help="seconds of one leg (10; quick: 3)")
    parser.add_argument("--scale", type=int, help="main: scale of pgbench (100; quick: 50)")
    parser.add_argument("--rows", type=int, help="growth: usage logs in the tables (10,000,000; quick: 500,000)")
    names = f"some of {', '.join(GROUPS)}; growth: of {', '.join(growth.GROUPS)}"
    parser.add_argument("--only", metavar="NAME,…", help=names)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--no-write", action="store_true", help="leave docs/ as it is, as --quick and --only do")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    groups = set(GROUPS if options.what == "main" else growth.GROUPS)
    options.rounds = options.rounds or (2 if options.quick else 3)
    options.seconds = options.seconds or (3 if options.quick else 10)
    options.scale = options.scale or (50 if options.quick else 100)
    options.rows = options.rows or (500_000 if options.quick else 10_000_000)
    options.warm_up_s = 1 if options.quick else 2
    options.only = set(options.only.split(",")) if options.only else groups
    if unknown := options.only - groups:
        parser.error(f"--only: no such thing as {', '.join(sorted(unknown))}")
    if min(options.rounds, options.seconds, options.scale, options.rows) < 1:
        parser.error("numbers are positive")
    options.writes = not (options.no_write or options.quick or options.only != groups)
    return options


def measure(options, folder):
    cluster = redis = None
    try:
        cluster, redis = Cluster(os.environ["DATABASE_URL"]), Redis(os.environ["REDIS_URL"])
        settings = cluster.settings()
        if settings["fsync"] != "on" or settings["synchronous_commit"] != "on":
            raise Failure(f"PostgreSQL is not durable: {settings}")
        print(", ".join(f"{name} {value}" for name, value in settings.items()), flush=True)
        product = Product(os.environ["VISIONSCOPE_BIN"], folder)
        run = (MainRun if options.what == "main" else growth.GrowthRun)(options, cluster, redis, product, folder)
        shown = {name: getattr(options, name) for name in ("rounds", "seconds", "warm_up_s", "scale", "rows")}
        return {"machine": describe(cluster, redis), "options": shown} | run.measure()
    finally:
        for connection in (cluster, redis):
            if connection:
                connection.close()


def tell(options, results):
    print()
    if options.what == "main":
        report.print_table(HEAD, [figure.cells() for figure in all_figures(results)])
    else:
        for head, rows in growth_figures.tables(results):
            report.print_table(head, rows)
            print()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if not options.writes:
        return
    if options.what == "main":
        report.write_part("main", report.main_part(results))
        (report.DOCS / report.PLOT).write_text(plot.svg(results["legs"]))
    else:
        report.write_part("growth", report.growth_part(results))


def main():
    options = options_of(sys.argv[1:])
    if options.check:
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="bench."))
    try:
        tell(options, measure(options, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"bench: {failure}")
