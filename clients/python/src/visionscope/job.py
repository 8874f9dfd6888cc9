"""What a handler sees of its job, and the process that it runs in.

A handler runs in a process of its own, because nothing else can be stopped for certain: neither a thread nor a task can be
cut while it hangs. The process serves one job at a time and is used again, until a job had to be cut.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from multiprocessing.connection import Connection
from typing import Any

from visionscope.models import Amount, amount_text

MAX_PROGRESS_BYTES = 1024
MAX_RESULT_BYTES = 16 * 1024
MAX_ERROR_BYTES = 2048
TRACE_LINES = 6
"""So many of the last lines of a traceback are told to the server."""


@dataclass(frozen=True)
class Done:
    """The job is done, and has cost `credits`, or a `quantity` at the price of its feature, or else all that is held."""

    result: Mapping[str, Any] | None = None
    credits: Amount | None = None
    quantity: Amount | None = None
    metadata: Mapping[str, str] | None = None
    """For the usage log."""

    def __post_init__(self) -> None:
        for amount in (self.credits, self.quantity):
            if amount is not None:
                amount_text(amount)
        if self.result is not None:
            json_text(self.result, MAX_RESULT_BYTES, "the result")


class Retry(Exception):
    """The job could not be done now: try it again, after `after_s` seconds, or else after the delay of its queue."""

    def __init__(self, message: str = "", *, after_s: int | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class GiveUp(Exception):
    """The job cannot be done, so it is not tried again."""


@dataclass(frozen=True)
class Job:
    """A job that a handler runs."""

    job_id: str
    kind: str
    queue: str
    args: dict[str, Any]
    attempt: int
    """The number of this attempt, from 1."""
    max_attempts: int
    timeout_s: int
    """How long the attempt may take. It is cut a little earlier."""
    correlation_id: str
    lease_id: str
    workspace_id: str | None = None
    held_credits: Decimal | None = None
    """What is held for the job, if it is metered."""
    overrun: str | None = None
    """What becomes of a cost beyond that. With `reject`, the job fails: report no more than `held_credits` then."""
    traceparent: str | None = None
    """W3C Trace Context of the request that has sent the job."""
    _tell: Callable[[str, Any], None] = field(default=lambda kind, value: None, repr=False, compare=False)
    _cancelled: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Tells how far the job is: an object of at most 1 KiB of JSON. Callers see the last that was told, some seconds later."""
        self._tell("progress", json_text(progress, MAX_PROGRESS_BYTES, "progress"))

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the job any more. Then end it soon: raise, to be charged nothing, or return what it has cost."""
        return self._cancelled.is_set()


Handler = Callable[[Job], Done | Mapping[str, Any] | None]


def payload(leased: Mapping[str, Any]) -> dict[str, Any]:
    """What the process needs of a leased job: the fields of `Job`, without others that a newer server sends."""
    found = {one.name: leased[one.name] for one in fields(Job) if leased.get(one.name) is not None}
    if "held_credits" in found:
        found["held_credits"] = Decimal(found["held_credits"])
    return found


def json_text(value: Mapping[str, Any], most: int, name: str) -> str:
    """The JSON of an object, if the server takes it."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict, not {type(value).__name__}")
    text = json.dumps(dict(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > most:
        raise ValueError(f"{name} is {len(text.encode())} bytes of JSON, and must be at most {most}")
    return text


def serve(connection: Connection, handlers: Mapping[str, Handler], setup: Callable[[], None] | None) -> None:
    """The main function of the process: runs the jobs that come, until the worker is gone."""
    os.setsid()  # so that what a handler has started is cut together with it
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the worker decides when a job ends
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    lock = threading.Lock()

    def tell(lease_id: str, kind: str, value: Any) -> None:
        with lock:
            connection.send((lease_id, kind, value))

    def listen() -> None:
        current: Job | None = None
        while True:
            try:
                found = connection.recv()
            except (EOFError, OSError):
                os.killpg(0, signal.SIGKILL)  # the worker was killed: its jobs are tried again elsewhere
                return
            if isinstance(found, dict):
                lease_id = found["lease_id"]
                current = Job(**found, _tell=lambda kind, value, of=lease_id: tell(of, kind, value))  # type: ignore[misc]
                jobs.put(current)
            elif current is not None and found == current.lease_id:
                current._cancelled.set()

    threading.Thread(target=listen, name="visionscope-listen", daemon=True).start()
    if setup is not None:
        setup()
    tell("", "begin", None)
    while True:
        job = jobs.get()
        tell(job.lease_id, *run(job, handlers[job.kind]))


def run(job: Job, handler: Handler) -> tuple[str, dict[str, Any]]:
    """Runs the handler. Returns how the job has ended, and what to tell the server of it."""
    try:
        returned = handler(job)
        done = returned if isinstance(returned, Done) else Done(result=returned)
        return "complete", completion(job, done)
    except BaseException as error:
        return "fail", failure(error)


def completion(job: Job, done: Done) -> dict[str, Any]:
    actual: dict[str, Any] = {}
    if done.credits is not None:
        actual["credits"] = amount_text(done.credits)
    if done.quantity is not None:
        actual["quantity"] = amount_text(done.quantity)
    if done.metadata is not None:
        actual["metadata"] = dict(done.metadata)
    told: dict[str, Any] = {} if done.result is None else {"result": dict(done.result)}
    if actual and job.held_credits is not None:
        told["actual"] = actual
    return told


def failure(error: BaseException) -> dict[str, Any]:
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    last = "".join(lines).rstrip().splitlines()[-TRACE_LINES:]
    is_told = isinstance(error, (Retry, GiveUp)) and str(error)
    text = str(error) if is_told else "\n".join([str(error) or type(error).__name__, *last])
    told: dict[str, Any] = {
        "error_class": type(error).__name__,
        "error": text.encode(errors="replace")[:MAX_ERROR_BYTES].decode(errors="ignore"),
        "retryable": not isinstance(error, GiveUp),
    }
    if isinstance(error, Retry) and error.after_s is not None:
        told["retry_after_s"] = int(error.after_s)
    return told
