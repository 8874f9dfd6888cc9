"""What a run starts and asks: PostgreSQL and Redis (from scripts/with-servers), and the product's servers.

Everything is stopped by its process id. Absent on purpose: settings that make the product less durable.
"""

import glob
import http.client
import json
import os
import random
import secrets
import socket
import subprocess
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 40  # the server's own time limits for stopping add up to some thirty seconds
TIMEOUT_S = 3600  # of what reads or writes many rows
CONNECTIONS = 16  # requests at once while data is prepared
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PSQL = ["psql", "-XAtq", "-F", "\t", "-v", "ON_ERROR_STOP=1"]
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")
SHOWN = ("server_version", *DURABLE, "wal_compression", "shared_buffers", "max_wal_size", "checkpoint_timeout")


class Failure(Exception):
    """Ends the run. Its text is for the person who started it."""


def run(*commands, timeout_s=TIMEOUT_S, **options):
    """Runs commands at the same time, to their ends, and returns what each printed."""
    processes = []
    try:
        for command in commands:
            processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                              stderr=subprocess.PIPE, text=True, **options))
        outputs = [process.communicate(timeout=timeout_s) for process in processes]
    except subprocess.TimeoutExpired as late:
        raise Failure(f"{late.cmd[0]} took more than {timeout_s} s") from None
    finally:
        for process in processes:
            stop(process)
    for process, (output, errors) in zip(processes, outputs):
        if process.returncode != 0:
            raise Failure(f"{process.args[0]} ended with {process.returncode}:\n{output[-2000:]}\n{errors[-4000:]}")
    return [output for output, _ in outputs]


def stop(process):
    """Asks a process to end, if it has not ended, and kills it if it does not."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(what, is_so, timeout_s, every_s=0.05):
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise Failure(f"not within {timeout_s} s: {what}")
        time.sleep(every_s)


def psql(url, sql):
    """Runs statements and returns the rows that they give, as texts."""
    output, = run([*PSQL, "-c", sql, url])
    return [line.split("\t") for line in output.splitlines()]


def cpu_s(pid):
    """Processor seconds of a process and of its children, living and ended."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            of, _, rest = path.read_text().rpartition(")")
        except OSError:  # it has ended meanwhile
            continue
        _, parent, *fields = rest.split()
        if of.startswith(f"{pid} ("):
            ticks += sum(map(int, fields[9:13]))
        elif parent == str(pid):
            ticks += sum(map(int, fields[9:11]))
    return ticks / TICKS_PER_S


def memory_mb(pid, field):
    """`VmRSS`: memory now. `VmHWM`: the most so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


class Cluster:
    """One PostgreSQL with its settings, and one Redis."""

    def __init__(self, url, redis_url):
        self.base, self.redis_url = url.rpartition("/")[0], redis_url
        data = self.sql("show data_directory")[0][0]
        self.postmaster = int(Path(data, "postmaster.pid").read_text().split()[0])
        about = dict(line.split(":", 1) for line in self.redis("info", "server").splitlines() if ":" in line)
        self.redis_pid = int(about["process_id"])
        self.settings = {name: self.sql(f"show {name}")[0][0] for name in SHOWN} | {"Redis": about["redis_version"]}
        if {self.settings[name] for name in DURABLE} != {"on"}:
            raise Failure(f"PostgreSQL is not durable: {self.settings}")

    def url(self, database):
        return f"{self.base}/{database}"

    def sql(self, statement):
        return psql(self.url("postgres"), statement)

    def create(self, database, template="template1"):
        self.sql(f"create database {database} template {template}")
        return self.url(database)

    def redis(self, *words):
        return run(["redis-cli", "-u", self.redis_url, *words])[0]


@contextmanager
def cluster(settings):
    """A cluster with these settings of PostgreSQL. It ends when its standard input is closed, so also with us."""
    environment = os.environ | {
        "WITH_SERVERS_DURABLE": "1",
        "WITH_SERVERS_POSTGRES": " ".join(f"-c {name}={value}" for name, value in settings.items()),
    }
    command = [ROOT / "scripts/with-servers", "sh", "-c", 'echo "$DATABASE_URL $REDIS_URL"; cat']
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
                               start_new_session=True)
    try:
        urls = process.stdout.readline().split()
        if len(urls) != 2:
            raise Failure("scripts/with-servers did not start the servers")
        # What stands in PATH on Debian is a wrapper in Perl, which costs more than a short statement.
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda folder: float(folder.split("/")[-2]))
        os.environ["PATH"] = os.pathsep.join([*reversed(found), os.environ["PATH"]])
        yield Cluster(*urls)
    finally:
        process.stdin.close()
        process.wait()


class Product:
    """The program, with its defaults but for a key, the plans, an address, and a higher limit of requests."""

    def __init__(self, folder):
        self.binary, self.folder = str(ROOT / os.environ["VISIONSCOPE_BIN"]), folder
        self.environment = {
            "PATH": os.environ["PATH"],  # nothing else of the caller's configuration
            "VISIONSCOPE_CONFIG_DIR": str(folder),
            "VISIONSCOPE__PLANS__FILE": str(ROOT / "scripts/benchmark/plans.toml"),
            "VISIONSCOPE__AUTH__KEYS__0__KID": "bench",
            "VISIONSCOPE__AUTH__KEYS__0__ALG": "HS256",
            "VISIONSCOPE__AUTH__KEYS__0__SECRET": secrets.token_hex(32),
            "VISIONSCOPE__LIMITS__WORKSPACE_RATE_PER_S": "10000000",
            "VISIONSCOPE__SERVER__DRAIN_DELAY_MS": "0",
        }
        self.token = self.command("token", "--workspace", "*", "--valid-for-s", "86400", settings={})

    def command(self, *words, settings):
        """Runs a command of the program to its end and returns the last line that it printed."""
        output, = run([self.binary, *words], env=self.environment | settings, cwd=self.folder)
        return output.strip().splitlines()[-1]

    @contextmanager
    def server(self, settings):
        """A server that is ready: its process id and its port. `settings` says where its data is."""
        port = free_port()
        log = self.folder / f"server-{port}.log"
        environment = self.environment | settings | {"VISIONSCOPE__SERVER__BIND": f"127.0.0.1:{port}"}
        with log.open("wb") as output:
            process = subprocess.Popen([self.binary, "serve"], env=environment, cwd=self.folder,
                                       stdin=subprocess.DEVNULL, stdout=output, stderr=output)

        def is_ready():
            if process.poll() is not None:
                raise Failure(f"the server ended with {process.returncode}:\n{log.read_text()[-3000:]}")
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).status == 200
            except OSError:
                return False

        try:
            wait_until("the server is ready", is_ready, START_TIMEOUT_S)
            yield process.pid, port
        finally:
            stop(process)

    def provision(self, settings, count, deductions=0):
        """Makes workspaces, the first of them with one deduction each, and returns their ids in order."""
        ids = sorted(str(uuid.uuid4()) for _ in range(count))
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        deduction = {"feature_code": "text.generate", "credits": "0.25", "user_id": "user-7"}

        def send(first):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_TIMEOUT_S)
            for at in range(first, count, CONNECTIONS):
                path = f"/v1/workspaces/{ids[at]}"
                requests = [("PUT", path, {"name": "Bench", "plan_code": "bench"}),
                            ("POST", f"{path}/credits/deduct", deduction)]
                for method, path, body in requests if at < deductions else requests[:1]:
                    connection.request(method, path, json.dumps(body), headers | {"Idempotency-Key": path})
                    answer = connection.getresponse()
                    text = answer.read().decode()
                    if answer.status not in (200, 201):
                        raise Failure(f"{method} {path}: {answer.status} {text[:500]}")

        with self.server(settings) as (_, port), ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(send, range(CONNECTIONS)))
        return ids


def free_port():
    """A port that nobody listens on, below the range from which the kernel picks ports for clients."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
