"""The worker: takes jobs from queues and runs their handlers.

The thread of `run` owns the jobs and their processes, so there is nothing to lock. Those that speak with the server are in
`link.py`; they, and signals, leave in `_heard` what is to be done.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from visionscope.client import Client
from visionscope.errors import Problem
from visionscope.job import Handler, payload, serve
from visionscope.link import Link, Run

log = logging.getLogger("visionscope.worker")
spawn = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang

MARGIN_S = 5.0
"""A job is cut so long before its timeout, or a tenth of it if that is less, so that the server can still be told."""
FLUSH_S = 5.0
"""So long a worker that stops goes on telling the server of its jobs."""
TICK_S = 1.0


@dataclass(eq=False)
class Child:
    """A process that runs handlers."""

    process: Any
    connection: Connection
    has_begun: bool = False

    def cut(self) -> int | None:
        """Kills it together with all that it has started. Returns its exit code."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.connection.close()
        code: int | None = self.process.exitcode
        return code


@dataclass(eq=False)
class Running(Run):
    """A job and the process that runs it, if one does."""

    child: Child | None = None
    is_canceled: bool = False


class Worker:
    """Runs the jobs of `queues`, up to `slots` at once. `run` returns when it is told to stop, by SIGTERM for example.

    `handlers` has a function for each kind of job. Another process imports it, so a lambda does not do, and a program must
    call `run` under `if __name__ == "__main__":`. `setup` is called in each of these processes before its first job.

    A worker that is told to stop takes no more jobs, waits up to `drain_s` for those that run, and gives back what is left.
    A job that is canceled has `cancel_s` to end by itself. `poll_s` is how long one request for jobs waits, up to 20 seconds.
    """

    def __init__(
        self,
        client: Client,
        *,
        queues: Sequence[str],
        handlers: Mapping[str, Handler],
        slots: int = 4,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        version: str | None = None,
        setup: Callable[[], None] | None = None,
        drain_s: float = 20.0,
        cancel_s: float = 5.0,
        poll_s: int = 20,
    ) -> None:
        try:
            pickle.dumps((dict(handlers), setup))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(f"handlers and setup must be functions that another process can import: {error}") from None
        self._handlers, self._setup, self._drain_s, self._cancel_s = dict(handlers), setup, drain_s, cancel_s
        about: dict[str, Any] = {"name": name or socket.gethostname(), "queues": list(queues), "slots": slots}
        about |= {"labels": dict(labels)} if labels else {}
        about |= {"version": version} if version else {}
        self._link: Link[Running] = Link(
            client,
            about,
            poll_s,
            begin=partial(self._hear, self._begin),
            heed=partial(self._hear, self._heed),
            answered=partial(self._hear, self._answered),
        )
        self._idle: list[Child] = []
        self._heard: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._leave_at = float("inf")
        self._fault = ""

    def run(self) -> None:
        """Works until it is told to stop. Raises a `Problem` if the server does not take it as a worker, and a `RuntimeError` if
        no process for handlers can start."""
        self._link.register()
        with self._signals():
            try:
                self._link.start()
                while self._link.is_leasing or self._heard or self._link.runs:
                    if time.monotonic() >= self._leave_at + FLUSH_S:
                        log.error("%d jobs are left behind: they are tried again after their leases", len(self._link.runs))
                        break
                    self._turn()
            finally:
                self._link.close()
                for child in [*self._idle, *(run.child for run in self._link.runs.values() if run.child)]:
                    child.cut()
        log.info("worker %s has stopped", self._link.worker_id)
        if self._fault:
            raise RuntimeError(self._fault)

    def stop(self) -> None:
        """Tells the worker to stop, from another thread for example. The second time, it does not wait for its jobs."""
        self._hear(self._stop, "it was told to")

    # What the thread of `run` does

    def _turn(self) -> None:
        """Waits for something to do, and does it."""
        children = [run.child for run in self._link.runs.values() if run.child]
        handles = [handle for child in children for handle in (child.connection, child.process.sentinel)]
        soonest = min((min(run.cut_at, self._leave_at) for run in self._link.runs.values() if run.child), default=float("inf"))
        ready = wait([self._woken, *handles], timeout=min(TICK_S, max(0.0, soonest - time.monotonic())))
        if self._woken in ready:
            self._woken.recv(4096)
        while self._heard:
            heed, about = self._heard.popleft()
            heed(*about)
        for run in list(self._link.runs.values()):
            if run.child is not None:
                self._listen(run, run.child)
        now = time.monotonic()
        for run in list(self._link.runs.values()):
            if run.child is not None and now >= min(run.cut_at, self._leave_at):
                self._cut(run, run.child, is_late=now >= run.cut_at)

    def _begin(self, jobs: list[dict[str, Any]]) -> None:
        for job in jobs:
            if old := self._link.runs.get(job["job_id"]):
                self._drop(old)  # its lease was over, and it has come again
            timeout_s = float(job["timeout_s"])
            run = Running(job, time.monotonic() + timeout_s - min(MARGIN_S, timeout_s / 10))
            self._link.add(run)
            if self._link.is_stopping:
                self._end(run, "release", {})
            elif job["kind"] in self._handlers:
                self._start(run)
            else:
                self._fail(run, "no-handler", f"this worker has no handler for {job['kind']}")

    def _start(self, run: Running) -> None:
        while True:
            try:
                child = self._idle.pop() if self._idle else self._child()
            except OSError as error:
                return self._fail(run, "no-process", f"no process could be started: {error}")
            try:
                child.connection.send(payload(run.job))
            except OSError:  # it has died while it was idle
                child.cut()
                continue
            run.child = child
            return log.debug("job %s of kind %s begins", run.job["job_id"], run.job["kind"])

    def _child(self) -> Child:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=serve, args=(theirs, self._handlers, self._setup), name="visionscope-handler")
        process.start()
        theirs.close()
        return Child(process, ours)

    def _listen(self, run: Running, child: Child) -> None:
        try:
            while child.connection.poll():
                lease_id, kind, value = child.connection.recv()
                child.has_begun = True
                if lease_id != run.job["lease_id"]:
                    continue  # a thread that an earlier job has left behind
                if kind == "progress":
                    run.progress = value
                    continue
                run.child = None
                self._idle.append(child)
                return self._end(run, kind, value)
            has_died = child.process.sentinel in wait([child.process.sentinel], timeout=0)
        except (EOFError, OSError):
            has_died = True
        if has_died:
            run.child = None
            code = child.cut()
            if child.has_begun:
                return self._fail(run, "process-died", f"the process of the handler ended with code {code}")
            # It could not import the program, or `setup` has raised. That is not the job's fault, and the next would do no better.
            self._fault = f"a process for handlers could not start, and ended with code {code}"
            self._end(run, "release", {})
            if not self._link.is_stopping:
                self._stop(self._fault)

    def _cut(self, run: Running, child: Child, *, is_late: bool) -> None:
        run.child = None
        child.cut()
        if not is_late:
            self._end(run, "release", {})
        elif run.is_canceled:
            self._fail(run, "canceled", "the job was canceled, and its handler did not end in time", retryable=False)
        else:
            self._fail(run, "timeout", f"the handler did not end within {run.job['timeout_s']} s, and was cut")

    def _fail(self, run: Running, error_class: str, error: str, *, retryable: bool = True) -> None:
        self._end(run, "fail", {"error_class": error_class, "error": error, "retryable": retryable})

    def _end(self, run: Running, how: str, end: dict[str, Any]) -> None:
        if how == "fail":
            log.warning("job %s has failed: %s: %s", run.job["job_id"], end["error_class"], end["error"])
        elif how == "release":
            log.info("job %s is given back", run.job["job_id"])
        run.how, run.end = how, end
        self._link.end(run)

    def _answered(self, run: Running, status: int, problem: dict[str, Any]) -> None:
        """The server has answered the end of the job."""
        if self._link.runs.get(run.job["job_id"]) is not run:
            return
        code = problem.get("code")
        if run.how == "complete" and (status in (413, 422) or code == "capture-exceeds-hold"):
            # The server does not take this result or this cost, and would not take it from another attempt.
            return self._fail(run, str(code), str(Problem(status, problem)), retryable=False)
        if status != 200:
            log.warning("job %s was not ended: %s", run.job["job_id"], Problem(status, problem))
        self._drop(run)

    def _drop(self, run: Running) -> None:
        if run.child is not None:
            run.child.cut()
            run.child = None
        self._link.drop(run)

    def _heed(self, runs: list[Running], answer: dict[str, Any]) -> None:
        """Does what the answer to a heartbeat about these jobs says."""
        for run in runs:
            job_id = run.job["job_id"]
            if self._link.runs.get(job_id) is not run or run.child is None:
                continue
            if job_id in answer["lost"]:
                log.warning("job %s was lost: it is stopped", job_id)
                self._drop(run)
            elif job_id in answer["cancel"] and not run.is_canceled:
                log.info("job %s is canceled", job_id)
                run.is_canceled = True
                run.cut_at = min(run.cut_at, time.monotonic() + self._cancel_s)
                with contextlib.suppress(OSError):
                    run.child.connection.send(run.job["lease_id"])
        if answer["drain"] and not self._link.is_stopping:
            self._stop("the server wants it to")

    def _stop(self, why: str) -> None:
        if self._link.is_stopping:
            self._leave_at = time.monotonic()
            return
        log.info("stops, because %s; %d jobs are still run", why, len(self._link.runs))
        self._leave_at = time.monotonic() + self._drain_s
        self._link.stop_leasing()

    # What others do

    def _hear(self, heed: Callable[..., None], *about: Any) -> None:
        """Lets the thread of `run` do something. Also called by signal handlers, so it takes no lock."""
        self._heard.append((heed, about))
        with contextlib.suppress(OSError):  # it is full, so the thread wakes anyway
            self._waker.send(b"!")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stops at SIGTERM and SIGINT, if this is the main thread: no other can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def told(number: int, _: Any) -> None:
            self._hear(self._stop, f"of {signal.Signals(number).name}")

        before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
