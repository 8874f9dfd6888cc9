"""The fixtures of all tests.

With DATABASE_URL, all tests run on PostgreSQL too, in a new database. SDK_TEST_DATABASE chooses one: `sqlite` or `postgres`.
"""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Database, Server, WorkerProcess

from visionscope import Client

CHOSEN = os.environ.get("SDK_TEST_DATABASE")
DATABASES = [CHOSEN] if CHOSEN else ["sqlite", "postgres"] if "DATABASE_URL" in os.environ else ["sqlite"]


def stop_once(*_: Any) -> None:
    """Ends the tests like Ctrl-C, so that what they have started is ended too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


signal.signal(signal.SIGTERM, stop_once)


@pytest.fixture(scope="session", params=DATABASES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Database(request.param) as url:
        server = Server(tmp_path_factory.mktemp(request.param), url)
        try:
            yield server
            server.stop()
            assert server.verify() == ""
        finally:
            server.kill()


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[Client]:
    with Client(server.base_url, server.token) as client:
        yield client


@pytest.fixture
def workspace(client: Client) -> str:
    """A workspace with 1,000 credits."""
    workspace_id = str(uuid.uuid4())
    client.provision(workspace_id, name="Acme", plan_code="pro")
    return workspace_id


@pytest.fixture
def start_worker(server: Server, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    started: list[WorkerProcess] = []

    def start(queue: str, *, slots: int = 2, drain_s: float = 20, cancel_s: float = 5) -> WorkerProcess:
        log = tmp_path / f"worker-{len(started)}.log"
        started.append(WorkerProcess(server, log, queue, slots, drain_s, cancel_s))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
        print(f"--- {worker.log.name}\n{worker.log.read_text()}")
