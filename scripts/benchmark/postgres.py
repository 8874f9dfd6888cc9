"""The cluster of this run: databases, statements, and pgbench.

The address comes from scripts/with-servers in DATABASE_URL. psql is the only client, so that nothing
has to be installed for Python. Deliberately absent: any setting of the server; what pgbench gets, the
product gets.
"""

import glob
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from processes import Failure, family_cpu_s, parent_of, read_line, run, stop

STATEMENT_TIMEOUT_S = 120
PGBENCH_LOAD_TIMEOUT_S = 900
PGBENCH_THREADS = 2
CONNECTIONS_PER_S = 64  # at least; pgbench's time runs from before its clients connect
PGBENCH_SLACK_S = 60  # to connect, to vacuum before and to end after the measured time


def program(name):
    """Debian keeps pgbench out of PATH."""
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: float(path.split("/")[-2]))
    found = [f"{folder}/{name}" for folder in reversed(folders) if os.access(f"{folder}/{name}", os.X_OK)]
    path = found[0] if found else shutil.which(name)
    if not path:
        raise Failure(f"{name} is missing: it comes with PostgreSQL")
    return path


class Session:
    """One connection through psql, kept open."""

    def __init__(self, url):
        command = [program("psql"), "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", url]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        self.buffer = bytearray()
        self.asked = ""

    def rows(self, sql, timeout_s=STATEMENT_TIMEOUT_S):
        """Runs statements and returns the rows they gave, as texts."""
        self.begin(sql)
        return self.end(timeout_s)

    def begin(self, sql):
        self.asked = sql.strip()[:200]
        self.process.stdin.write(f"{sql.rstrip().rstrip(';')};\n\\echo \x01\n".encode())

    def end(self, timeout_s=STATEMENT_TIMEOUT_S):
        """Waits for what was begun."""
        lines = []
        while True:
            try:
                line = read_line(self.process.stdout, self.buffer, timeout_s, self.asked)
            except Failure as failure:
                raise Failure("\n".join([str(failure), *lines[-10:]])) from None
            if line == "\x01":
                return [line.split("\t") for line in lines]
            lines.append(line)

    def value(self, sql, timeout_s=STATEMENT_TIMEOUT_S):
        return self.rows(sql, timeout_s)[0][0]

    def close(self):
        self.process.stdin.close()
        stop(self.process)


class Cluster:
    """The throwaway cluster."""

    def __init__(self, url):
        self.base = urlsplit(url)
        self.session = Session(url)
        self.postmaster = parent_of(int(self.session.value("select pg_backend_pid()")))

    def url(self, database):
        return urlunsplit(self.base._replace(path=f"/{database}"))

    def create(self, database, template="template1"):
        self.session.rows(f"create database {database} template {template}", timeout_s=PGBENCH_LOAD_TIMEOUT_S)
        return self.url(database)

    def drop(self, database):
        self.session.rows(f"drop database if exists {database} with (force)")

    def settings(self):
        names = ["server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_sync_method",
                 "shared_buffers", "max_wal_size", "checkpoint_timeout"]
        return {name: self.session.value(f"show {name}") for name in names}

    def cpu_s(self):
        return family_cpu_s(self.postmaster)

    def close(self):
        self.session.close()


def load_pgbench(url, scale):
    run([program("pgbench"), "-i", "-q", "-s", str(scale), url], PGBENCH_LOAD_TIMEOUT_S)


def run_pgbench(url, clients, seconds, folder):
    """TPC-B-like, prepared; returns its report, and leaves the times of its transactions in a folder."""
    threads = min(PGBENCH_THREADS, clients)
    seconds += clients // CONNECTIONS_PER_S
    command = [program("pgbench"), "-M", "prepared", "-c", str(clients), "-j", str(threads), "-T", str(seconds),
               "--log", f"--log-prefix={folder}/times", url]
    return run(command, seconds + PGBENCH_SLACK_S)


def warm_up_pgbench(url, clients, seconds):
    with tempfile.TemporaryDirectory() as folder:
        run_pgbench(url, clients, seconds, folder)


def measure_pgbench(url, clients, seconds):
    """Transactions per second and the percentiles of their times."""
    with tempfile.TemporaryDirectory() as folder:
        report = run_pgbench(url, clients, seconds, folder)
        times_us = sorted(
            int(line.split()[2]) for log in Path(folder).iterdir() for line in log.read_text().splitlines()
        )
    # The time to connect is no part of it.
    tps = [line.split()[2] for line in report.splitlines() if line.startswith("tps =")]
    failed = [line for line in report.splitlines() if line.startswith("number of failed") and ": 0 " not in line]
    if not tps or failed or not times_us:
        raise Failure(f"pgbench: {report}")
    at = lambda part: times_us[min(len(times_us) - 1, int(len(times_us) * part))] / 1000
    return {"per_s": float(tps[0]), "done": len(times_us), "p50_ms": at(0.50), "p95_ms": at(0.95), "p99_ms": at(0.99)}
