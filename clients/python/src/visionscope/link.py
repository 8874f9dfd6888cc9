"""What a worker says to the server, and hears from it: one thread leases jobs, one sends heartbeats, one ends jobs.

A job keeps its slot until the server has answered its end, so that a worker whose server is down waits and forgets nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from visionscope.client import Client
from visionscope.errors import Problem, VisionScopeError

log = logging.getLogger("visionscope.worker")

MAX_JOBS = 32
"""So many jobs one request leases or ends."""
MAX_BYTES = 60_000
"""So much one request tells of jobs: the server takes 64 KiB."""
LEASE_BYTES = 128
"""So much a heartbeat takes for a job, without its progress."""
PROGRESS_S = 5.0
"""So old progress is at most when it is told, and so often at most a heartbeat is sent because of it."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 10.0


@dataclass(eq=False)
class Run:
    """A job of this worker, from its lease until the server has answered its end."""

    job: dict[str, Any]
    cut_at: float
    progress: str | None = None
    told: str | None = None
    """The progress that the server knows."""
    how: str = ""
    """How it has ended: `complete`, `fail` or `release`."""
    end: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> dict[str, Any]:
        return {"job_id": self.job["job_id"], "lease_id": self.job["lease_id"]}


R = TypeVar("R", bound=Run)


class Link(Generic[R]):
    """The three threads. They tell of what they hear by calling `begin`, `heed` and `answered`, which must return at once."""

    def __init__(
        self,
        client: Client,
        about: dict[str, Any],
        poll_s: int,
        *,
        begin: Callable[[list[dict[str, Any]]], None],
        heed: Callable[[list[R], dict[str, Any]], None],
        answered: Callable[[R, int, dict[str, Any]], None],
    ) -> None:
        self._client, self._about, self._poll_s = client, about, poll_s
        self._begin, self._heed, self._answered = begin, heed, answered
        self.worker_id, self._heartbeat_s, self._registering = "", 1.0, threading.Lock()
        self._free = threading.Semaphore(about["slots"])
        self.runs: dict[str, R] = {}
        """The jobs in hand, by id. Only `add` and `drop` change it."""
        self._lock = threading.Lock()
        self._ends: queue.SimpleQueue[R | None] = queue.SimpleQueue()
        self._stopping, self._over, self._beat_now = threading.Event(), threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"visionscope{work.__name__}", daemon=True)
            for work in (self._lease_jobs, self._send_heartbeats, self._send_ends)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def add(self, run: R) -> None:
        with self._lock:
            self.runs[run.job["job_id"]] = run

    def drop(self, run: R) -> None:
        """The job is over: its slot is free."""
        with self._lock:
            del self.runs[run.job["job_id"]]
        self._free.release()

    def end(self, run: R) -> None:
        """Tells the server how the job has ended, until there is an answer."""
        self._ends.put(run)

    def stop_leasing(self) -> None:
        self._stopping.set()
        self._beat_now.set()
        self._free.release()  # so that the thread sees it

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def is_leasing(self) -> bool:
        """Whether jobs may still come: the server lets a request end that is under way when it hears that the worker stops."""
        return self._threads[0].is_alive()

    def close(self) -> None:
        self._stopping.set()
        self._over.set()
        self._beat_now.set()
        self._ends.put(None)

    def _lease_jobs(self) -> None:
        pauses = _pauses()
        while not self._stopping.is_set():
            self._free.acquire()
            wanted = 1
            while wanted < MAX_JOBS and self._free.acquire(blocking=False):
                wanted += 1
            jobs: list[dict[str, Any]] = []
            worker_id = self.worker_id
            try:
                if not self._stopping.is_set():
                    body = {"max": wanted, "wait_s": self._poll_s}
                    answer = self._post(f"/v1/workers/{worker_id}/lease", body, timeout=self._poll_s + 10.0)
                    jobs, pauses, self._heartbeat_s = answer["jobs"], _pauses(), float(answer["heartbeat_s"])
            except Exception as error:
                self._stopping.wait(self._after(error, "cannot lease jobs", pauses, worker_id))
            if jobs:
                self._begin(jobs)
            if wanted > len(jobs):
                self._free.release(wanted - len(jobs))

    def _send_heartbeats(self) -> None:
        """Sends a heartbeat as often as the server wants one, and earlier if there is progress to be told."""
        pauses, pause = _pauses(), min(PROGRESS_S, self._heartbeat_s)
        due = time.monotonic() + self._heartbeat_s
        while not self._over.is_set():
            if self._beat_now.wait(min(pause, max(0.0, due - time.monotonic()))):
                self._beat_now.clear()
                due = time.monotonic()
                if self._over.is_set():
                    return
            with self._lock:
                runs = list(self.runs.values())
            if time.monotonic() < due and all(run.progress in (None, run.told) for run in runs):
                continue
            worker_id, beats, told = self.worker_id, [run.key for run in runs], []
            room = MAX_BYTES - LEASE_BYTES * len(runs)
            for run, beat in zip(runs, beats, strict=True):
                progress = run.progress
                if progress is None or progress == run.told or len(progress.encode()) > room:
                    continue  # what has no room goes with the next heartbeat
                beat["progress"] = json.loads(progress)
                room -= len(progress.encode())
                told.append((run, progress))
            try:
                about: dict[str, Any] = {"leases": beats} | ({"drain": True} if self.is_stopping else {})
                answer = self._post(f"/v1/workers/{worker_id}/heartbeat", about)
                self._heed(runs, answer)
                self._heartbeat_s = float(answer["heartbeat_s"])
                pauses, pause = _pauses(), min(PROGRESS_S, self._heartbeat_s)
                due = time.monotonic() + self._heartbeat_s
            except Exception as error:
                pause = min(self._after(error, "cannot send a heartbeat", pauses, worker_id), self._heartbeat_s)
                due = time.monotonic() + pause
                if not (isinstance(error, Problem) and error.status in (413, 422)):
                    continue  # else what the server does not take is not sent again
            for run, progress in told:
                run.told = progress

    def _send_ends(self) -> None:
        """Ends jobs. What ends while a request is under way goes with the next one."""
        while True:
            batch = [self._ends.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < MAX_JOBS:
                    batch.append(self._ends.get_nowait())
            for how in ("complete", "fail"):
                for runs in _portions([run for run in batch if run is not None and run.how == how]):
                    self._send_end(how, runs)
            for run in batch:
                if run is not None and run.how == "release":
                    self._send_end("release", [run])
            if None in batch:
                return

    def _send_end(self, how: str, runs: list[R]) -> None:
        pauses = _pauses()
        while True:
            worker_id = self.worker_id
            try:
                if how == "release":
                    self._post(f"/v1/jobs/{runs[0].job['job_id']}/release", {"lease_id": runs[0].job["lease_id"]})
                    return self._answered(runs[0], 200, {})
                ends = [run.key | run.end for run in runs]
                answer = self._post(f"/v1/workers/{worker_id}/{how}", {"jobs": ends})
                for run, result in zip(runs, answer["results"], strict=True):
                    self._answered(run, result["status"], result.get("problem") or {})
                return
            except Exception as error:
                if isinstance(error, Problem) and (error.status in (409, 413, 422) or error.code == "job-not-found"):
                    if len(runs) == 1:
                        return self._answered(runs[0], error.status, error.body)
                    for run in runs:  # one of them is wrong: the others must not suffer
                        self._send_end(how, [run])
                    return
                if self._over.wait(self._after(error, "cannot end jobs", pauses, worker_id)):
                    return

    def _post(self, path: str, body: dict[str, Any], timeout: float | None = None) -> Any:
        return self._client.request("POST", path, body, timeout=timeout, retries=0)

    def register(self) -> None:
        """Registers the worker, however long the server is away. Raises a `Problem` if it is refused."""
        pauses = _pauses()
        while not self.worker_id:
            try:
                self._register("")
            except VisionScopeError as error:
                if isinstance(error, Problem) and error.status < 500 and error.status not in (408, 429):
                    raise
                time.sleep(self._after(error, "cannot register", pauses, ""))

    def _register(self, known: str) -> None:
        """Registers, unless another thread has done so since the worker was `known` by that id."""
        with self._registering:
            if self.worker_id == known:
                answer = self._post("/v1/workers", self._about)
                self.worker_id, self._heartbeat_s = answer["worker_id"], float(answer["heartbeat_s"])
                log.info("worker %s takes jobs of %s", self.worker_id, ", ".join(self._about["queues"]))

    def _after(self, error: Exception, what: str, pauses: Iterator[float], worker_id: str) -> float:
        """Looks at an error. Returns after how many seconds to try again."""
        is_known = isinstance(error, VisionScopeError)
        log.warning("%s: %s", what, error, exc_info=None if is_known else error)
        if isinstance(error, Problem) and error.code == "worker-not-found":
            try:
                self._register(worker_id)
                return 0.0
            except VisionScopeError as refused:
                log.warning("cannot register again: %s", refused)
        asked = error.retry_after_s if isinstance(error, Problem) else None
        return max(next(pauses), asked or 0.0)


def _pauses() -> Iterator[float]:
    """Longer and longer pauses, which differ at random, so that a fleet does not come back at once."""
    pause = FIRST_PAUSE_S
    while True:
        yield pause * random.uniform(0.5, 1)
        pause = min(LAST_PAUSE_S, pause * 2)


def _portions(runs: list[R]) -> Iterator[list[R]]:
    """The jobs in portions that one request can tell of."""
    portion: list[R] = []
    size = 0
    for run in runs:
        length = len(json.dumps(run.key | run.end, ensure_ascii=False).encode())
        if portion and size + length > MAX_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(run)
        size += length
    if portion:
        yield portion
