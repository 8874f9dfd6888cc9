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

from machine import describe
from postgres import Cluster
from processes import Failure
from product import Product
from redis_server import Redis
from rounds import GROUPS, MainRun


def options_of(words):
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures the server beside a transaction per command.")
    parser.add_argument("--quick", action="store_true", help="some three minutes: whether it works, and roughly where it is")
    parser.add_argument("--rounds", type=int, help="rounds, each of all legs (3; quick: 2)")
    parser.add_argument("--seconds", type=int, help="seconds of one leg (10; quick: 3)")
    parser.add_argument("--scale", type=int, help="scale of pgbench (100; quick: 50)")
    parser.add_argument("--only", metavar="NAME,…", help=f"some of {', '.join(GROUPS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--no-write", action="store_true", help="leave docs/ as it is")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.rounds = options.rounds or (2 if options.quick else 3)
    options.seconds = options.seconds or (3 if options.quick else 10)
    options.scale = options.scale or (50 if options.quick else 100)
    options.warm_up_s = 1 if options.quick else 2
    options.only = set(options.only.split(",")) if options.only else set(GROUPS)
    if unknown := options.only - set(GROUPS):
        parser.error(f"--only: no such thing as {', '.join(sorted(unknown))}")
    return options


def main():
    options = options_of(sys.argv[1:])
    if options.check:
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="bench."))
    cluster = redis = None
    try:
        cluster, redis = Cluster(os.environ["DATABASE_URL"]), Redis(os.environ["REDIS_URL"])
        settings = cluster.settings()
        if settings["fsync"] != "on" or settings["synchronous_commit"] != "on":
            raise Failure(f"PostgreSQL is not durable: {settings}")
        print(", ".join(f"{name} {value}" for name, value in settings.items()), flush=True)
        product = Product(os.environ["VISIONSCOPE_BIN"], folder)
        results = {"machine": describe(cluster, redis)} | MainRun(options, cluster, redis, product, folder).measure()
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    finally:
        for connection in (cluster, redis):
            if connection:
                connection.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"bench: {failure}")
