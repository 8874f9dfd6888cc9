"""What the tests start: the real server, which can be killed and started again, and workers as processes of their own."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pg8000.native

from visionscope import Client

T = TypeVar("T")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PROGRAM = Path(os.environ.get("VISIONSCOPE_BIN", ROOT / "target" / "debug" / "visionscope"))
START_TIMEOUT_S = 60.0
# Each test has a queue of its own, so that no worker takes the job of another test.
QUEUES = ["charges", "errors", "short", "cancels", "drains", "releases", "killed", "orphans", "crash", "ends", "threads"]


def wait_until(probe: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
    """Asks again and again until the answer is true, and returns it."""
    until = time.monotonic() + timeout_s
    while not (found := probe()):
        assert time.monotonic() < until, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Network(httpx.BaseTransport):
    """Remembers requests. `deal` returns the answer to each, perhaps that of the server, which it gets by calling `send`."""

    def __init__(self, deal: Callable[[httpx.Request, Callable[[], httpx.Response]], httpx.Response]) -> None:
        self.inner = httpx.HTTPTransport()
        self.deal = deal
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.deal(request, lambda: self.inner.handle_request(request))


class Server:
    """A server that can be killed and started again, with the same database and at the same address."""

    def __init__(self, folder: Path, database_url: str | None) -> None:
        self.base_url = f"http://127.0.0.1:{free_port()}"
        self.log = folder / "server.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("VISIONSCOPE_")}
        for name in ("DATABASE_URL", "REDIS_URL", "RUST_LOG"):
            inherited.pop(name, None)
        self.environment = inherited | {
            "VISIONSCOPE_CONFIG_DIR": str(ROOT / "config"),
            "VISIONSCOPE__SERVER__BIND": self.base_url.removeprefix("http://"),
            "VISIONSCOPE__SERVER__DRAIN_DELAY_MS": "0",
            "VISIONSCOPE__DATABASE__PATH": str(folder / "visionscope.db"),
            "VISIONSCOPE__AUTH__KEYS__0__KID": "tests",
            "VISIONSCOPE__AUTH__KEYS__0__ALG": "HS256",
            "VISIONSCOPE__AUTH__KEYS__0__SECRET": secrets.token_hex(32),
        }
        if database_url is not None:
            self.environment["DATABASE_URL"] = database_url
        for number, queue in enumerate(QUEUES):
            settings = {"LEASE_S": 15, "RETRY_DELAYS_S": 0, "MAX_ATTEMPTS": 5}
            settings |= {"TIMEOUT_S": 2} if queue == "short" else {}
            settings |= {"MAX_ATTEMPTS": 2} if queue == "errors" else {}
            for name, value in settings.items():
                self.environment[f"VISIONSCOPE__QUEUES__{queue.upper()}__{name}"] = str(value)
            self.environment[f"VISIONSCOPE__ROUTES__{number}__PATTERN"] = f"{queue}.*"
            self.environment[f"VISIONSCOPE__ROUTES__{number}__QUEUE"] = queue
        self.process: subprocess.Popen[bytes] | None = None
        self.start()
        self.token = self.mint()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([PROGRAM], env=self.environment, stdout=log, stderr=log)
        wait_until(self.is_ready, "the start of the server", START_TIMEOUT_S)

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.base_url}/readyz", timeout=2, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(START_TIMEOUT_S)
            self.process = None

    def mint(self, *arguments: str) -> str:
        command = [str(PROGRAM), "token", "--workspace", "*", *arguments]
        done = subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def verify(self) -> str:
        """What the program finds wrong with the database of the server, which must have been stopped."""
        assert self.process is None
        done = subprocess.run([PROGRAM, "verify"], env=self.environment, capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stdout + done.stderr


class WorkerProcess:
    """A worker in a process of its own, which runs the handlers of `handlers.py`."""

    def __init__(self, server: Server, log: Path, queue: str, slots: int, drain_s: float, cancel_s: float) -> None:
        self.log = log
        environment = {**os.environ, "BASE_URL": server.base_url, "TOKEN": server.token}
        command = [sys.executable, str(HERE / "handlers.py"), queue, str(slots), str(drain_s), str(cancel_s)]
        with log.open("ab") as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def has_logged(self, text: str) -> bool:
        return text in self.log.read_text()


class Database:
    """A new PostgreSQL database of the server at DATABASE_URL, dropped at the end; nothing for SQLite."""

    def __init__(self, kind: str) -> None:
        self.name = f"sdk_{uuid.uuid4().hex}" if kind == "postgres" else None

    def __enter__(self) -> str | None:
        if self.name is None:
            return None
        self.execute(f"create database {self.name}")
        return urllib.parse.urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{self.name}").geturl()

    def __exit__(self, *_: object) -> None:
        if self.name is not None:
            self.execute(f"drop database {self.name} with (force)")

    def execute(self, statement: str) -> None:
        address = urllib.parse.urlsplit(os.environ["DATABASE_URL"])
        assert address.username is not None
        connection = pg8000.native.Connection(
            urllib.parse.unquote(address.username),
            host=address.hostname or "127.0.0.1",
            port=address.port or 5432,
            database=address.path.lstrip("/"),
            password=urllib.parse.unquote(address.password) if address.password else None,
        )
        try:
            connection.run(statement)
        finally:
            connection.close()


def dead_letters(client: Client, workspace_id: str) -> list[dict[str, Any]]:
    params = {"source": "job", "workspace_id": workspace_id}
    found: list[dict[str, Any]] = client.request("GET", "/v1/ops/dead-letters", params=params)["items"]
    return found


def is_running(pid: int) -> bool:
    """Whether the process is there and has not ended: one that nobody has waited for yet has."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"
