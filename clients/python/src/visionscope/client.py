"""The client of the HTTP API."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from visionscope.errors import NoAnswer, Problem
from visionscope.models import (
    Amount,
    Capture,
    Credits,
    Deduction,
    Event,
    Granted,
    Hold,
    Provisioned,
    Purchase,
    SentJob,
    UsageLog,
    amount_text,
    decode,
)
from visionscope.pages import Page, Pages

T = TypeVar("T")
WorkspaceId = str | uuid.UUID
Metadata = Mapping[str, str]

FIRST_PAUSE_S = 0.25
LAST_PAUSE_S = 8.0
MAX_RETRY_AFTER_S = 30.0
"""If the server asks to wait for longer than this, the problem is raised at once."""


class Client:
    """Calls the API. One client may be used by several threads. Use it in a `with`, or `close` it.

    Every command has an `idempotency_key`, by default a new one; its retries have the same. Derive it from what the command is
    for, such as an order, if it must be the same after a restart of your program.

    A request is sent again, up to `retries` times and after longer and longer pauses, if it could not be sent or was not answered
    within `timeout` seconds, and after 408, 429 and 5xx. Then `NoAnswer` or the `Problem` is raised. `timeout` is for one try.
    """

    def __init__(
        self,
        base_url: str,
        token: str | Callable[[], str],
        *,
        timeout: float = 10.0,
        retries: int = 5,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`token` may be a function that returns a fresh one: it is called for each try."""
        self._token = token
        self._retries = retries
        agent = f"visionscope-python/{version('visionscope')}"
        self._http = httpx.Client(
            base_url=base_url.rstrip("/"), timeout=timeout, transport=transport, headers={"User-Agent": agent}
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Any call

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> Any:
        """Any call of the API, such as those that have no method here. Returns the JSON of the answer."""
        pauses = _pauses(self._retries if retries is None else retries)
        while True:
            failure: Problem | NoAnswer
            try:
                answer = self._send(method, path, body, params, idempotency_key, timeout)
            except (httpx.UnsupportedProtocol, httpx.LocalProtocolError):
                raise
            except httpx.RequestError as error:
                failure = NoAnswer(f"{method} {path}: {error or type(error).__name__}", idempotency_key)
            else:
                if answer.is_success:
                    return _json(answer, idempotency_key)
                failure = _problem(answer, idempotency_key)
                if answer.status_code not in (408, 429) and answer.status_code < 500:
                    raise failure
            pause = next(pauses, None)
            asked = failure.retry_after_s if isinstance(failure, Problem) else None
            if pause is None or (asked is not None and asked > MAX_RETRY_AFTER_S):
                raise failure
            time.sleep(max(pause, asked or 0.0))

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
        idempotency_key: str | None,
        timeout: float | None,
    ) -> httpx.Response:
        token = self._token() if callable(self._token) else self._token
        headers = {"Authorization": f"Bearer {token}"}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        if body is not None:
            headers["Content-Type"] = "application/json"
        return self._http.request(
            method,
            path,
            content=None if body is None else json.dumps(body, ensure_ascii=False, allow_nan=False).encode(),
            params=params,
            headers=headers,
            timeout=httpx.USE_CLIENT_DEFAULT if timeout is None else timeout,
        )

    def _command(self, cls: type[T], path: str, body: Mapping[str, Any], idempotency_key: str | None, method: str = "POST") -> T:
        key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
        sent = {name: value for name, value in body.items() if value is not None}
        return decode(cls, self.request(method, path, sent, idempotency_key=key))

    def _list(self, cls: type[T], path: str, params: Mapping[str, Any], cursor: str | None) -> Pages[T]:
        filters = {name: value for name, value in params.items() if value is not None}

        def fetch(cursor: str | None) -> Page[T]:
            answer = self.request("GET", path, params=filters if cursor is None else {**filters, "cursor": cursor})
            items = [decode(cls, item) for item in answer["items"]]
            return Page(items, answer.get("next"), answer["has_more"])

        return Pages(fetch, cursor)

    # Workspaces and credits

    def provision(self, workspace_id: WorkspaceId, *, name: str, plan_code: str, **more: Any) -> Provisioned:
        """Creates a workspace. `more` are further members of the request, such as `time_zone`."""
        body = {"name": name, "plan_code": plan_code, **more}
        return decode(Provisioned, self.request("PUT", _path(workspace_id), body))

    def credits(self, workspace_id: WorkspaceId) -> Credits:
        """The balance now."""
        return decode(Credits, self.request("GET", _path(workspace_id, "credits")))

    def deduct(
        self,
        workspace_id: WorkspaceId,
        feature_code: str,
        *,
        credits: Amount | None = None,
        quantity: Amount | None = None,
        user_id: str | None = None,
        occurred_at: datetime | None = None,
        metadata: Metadata | None = None,
        explain: bool = False,
        idempotency_key: str | None = None,
    ) -> Deduction:
        """Charges the use of a feature: either `credits`, or a `quantity` at the price of the plan."""
        body = {
            "feature_code": feature_code,
            **_use(credits, quantity),
            "user_id": user_id,
            "occurred_at": _instant(occurred_at),
            "metadata": metadata,
            "explain": explain or None,
        }
        return self._command(Deduction, _path(workspace_id, "credits", "deduct"), body, idempotency_key)

    def purchase(
        self,
        workspace_id: WorkspaceId,
        *,
        credits: Amount,
        amount_minor: int,
        currency: str,
        payment_reference: str,
        bonus_credits: Amount | None = None,
        expires_at: datetime | None = None,
        metadata: Metadata | None = None,
        idempotency_key: str | None = None,
    ) -> Purchase:
        """Books credits that were paid for: `amount_minor` is in cents, or whatever is the smallest unit of the `currency`."""
        body = {
            "credits": amount_text(credits),
            "bonus_credits": _optional(bonus_credits),
            "amount_minor": amount_minor,
            "currency": currency,
            "payment_reference": payment_reference,
            "expires_at": _instant(expires_at),
            "metadata": metadata,
        }
        return self._command(Purchase, _path(workspace_id, "credits", "purchase"), body, idempotency_key)

    def grant(
        self,
        workspace_id: WorkspaceId,
        *,
        credits: Amount,
        source: str,
        reason: str,
        priority: int | None = None,
        effective_at: datetime | None = None,
        expires_at: datetime | None = None,
        feature_scope: str | None = None,
        metadata: Metadata | None = None,
        idempotency_key: str | None = None,
    ) -> Granted:
        """Gives credits: `source` is `promotion` for free ones, and `adjustment` for a correction."""
        body = {
            "credits": amount_text(credits),
            "source": source,
            "reason": reason,
            "priority": priority,
            "effective_at": _instant(effective_at),
            "expires_at": _instant(expires_at),
            "feature_scope": feature_scope,
            "metadata": metadata,
        }
        return self._command(Granted, _path(workspace_id, "grants"), body, idempotency_key)

    # Holds

    def place_hold(
        self,
        workspace_id: WorkspaceId,
        feature_code: str,
        *,
        credits: Amount | None = None,
        quantity: Amount | None = None,
        min_credits: Amount | None = None,
        expires_in_s: int | None = None,
        user_id: str | None = None,
        metadata: Metadata | None = None,
        explain: bool = False,
        idempotency_key: str | None = None,
    ) -> Hold:
        """Reserves credits, to be captured or released later."""
        body = {
            "feature_code": feature_code,
            **_use(credits, quantity),
            "min_credits": _optional(min_credits),
            "expires_in_s": expires_in_s,
            "user_id": user_id,
            "metadata": metadata,
            "explain": explain or None,
        }
        return self._command(Hold, _path(workspace_id, "holds"), body, idempotency_key)

    def get_hold(self, workspace_id: WorkspaceId, hold_id: str) -> Hold:
        return decode(Hold, self.request("GET", _path(workspace_id, "holds", hold_id)))

    def list_holds(
        self,
        workspace_id: WorkspaceId,
        *,
        state: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Pages[Hold]:
        return self._list(Hold, _path(workspace_id, "holds"), {"state": state, "limit": limit}, cursor)

    def capture_hold(
        self,
        workspace_id: WorkspaceId,
        hold_id: str,
        *,
        credits: Amount | None = None,
        quantity: Amount | None = None,
        overrun: str | None = None,
        late_capture: bool = False,
        metadata: Metadata | None = None,
        idempotency_key: str | None = None,
    ) -> Capture:
        """Charges what the work has cost: `credits`, or a `quantity`, or else all that is held."""
        body = {
            **_use(credits, quantity),
            "overrun": overrun,
            "late_capture": late_capture or None,
            "metadata": metadata,
        }
        return self._command(Capture, _path(workspace_id, "holds", hold_id, "capture"), body, idempotency_key)

    def release_hold(
        self,
        workspace_id: WorkspaceId,
        hold_id: str,
        *,
        metadata: Metadata | None = None,
        idempotency_key: str | None = None,
    ) -> Hold:
        """Gives all that is held back."""
        path = _path(workspace_id, "holds", hold_id, "release")
        return self._command(Hold, path, {"metadata": metadata}, idempotency_key)

    def extend_hold(
        self,
        workspace_id: WorkspaceId,
        hold_id: str,
        *,
        expires_in_s: int,
        metadata: Metadata | None = None,
        idempotency_key: str | None = None,
    ) -> Hold:
        """Lets the hold expire later: so many seconds from now on."""
        body = {"expires_in_s": expires_in_s, "metadata": metadata}
        return self._command(Hold, _path(workspace_id, "holds", hold_id, "extend"), body, idempotency_key)

    # Jobs

    def submit_job(
        self,
        workspace_id: WorkspaceId,
        kind: str,
        args: Mapping[str, Any] | None = None,
        *,
        hold: Mapping[str, Any] | None = None,
        priority: int | None = None,
        run_at: datetime | None = None,
        max_attempts: int | None = None,
        unique_key: str | None = None,
        idempotency_key: str | None = None,
    ) -> SentJob:
        """Sends a job. With a `hold` it is charged when it ends: `{"feature_code": …, "credits": …}`, or a `quantity` instead of
        `credits`, and perhaps `overrun`, `user_id` and `metadata`."""
        if hold is not None:
            amounts = {name: amount_text(hold[name]) for name in ("credits", "quantity") if hold.get(name) is not None}
            hold = {**hold, **amounts}
        body = {
            "kind": kind,
            "args": args,
            "hold": hold,
            "priority": priority,
            "run_at": _instant(run_at),
            "max_attempts": max_attempts,
            "unique_key": unique_key,
        }
        return self._command(SentJob, _path(workspace_id, "jobs"), body, idempotency_key)

    def get_job(self, workspace_id: WorkspaceId, job_id: str) -> SentJob:
        return decode(SentJob, self.request("GET", _path(workspace_id, "jobs", job_id)))

    def wait_for_job(self, workspace_id: WorkspaceId, job_id: str, *, timeout_s: float, poll_s: float = 1.0) -> SentJob:
        """Looks at the job every `poll_s` seconds until it is over, or raises `TimeoutError`."""
        until = time.monotonic() + timeout_s
        while not (job := self.get_job(workspace_id, job_id)).is_over:
            if time.monotonic() >= until:
                raise TimeoutError(f"job {job_id} is still {job.state}")
            time.sleep(poll_s)
        return job

    def list_jobs(
        self,
        workspace_id: WorkspaceId,
        *,
        state: str | None = None,
        kind: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Pages[SentJob]:
        """The jobs, the newest first. `limit` is that of a page."""
        return self._list(SentJob, _path(workspace_id, "jobs"), {"state": state, "kind": kind, "limit": limit}, cursor)

    def cancel_job(self, workspace_id: WorkspaceId, job_id: str) -> SentJob:
        """Ends a job. If a worker has it, the worker is asked to stop it, and the job is still `running`."""
        return decode(SentJob, self.request("POST", _path(workspace_id, "jobs", job_id, "cancel")))

    # What has happened

    def usage(
        self,
        workspace_id: WorkspaceId,
        *,
        order: str | None = None,
        begin: datetime | None = None,
        end: datetime | None = None,
        feature_code: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Pages[UsageLog]:
        """Accepted deductions and captures, recorded from `begin` on and before `end`. `order` is `asc` or `desc`."""
        params = {
            "order": order,
            "from": _instant(begin),
            "to": _instant(end),
            "feature_code": feature_code,
            "limit": limit,
        }
        return self._list(UsageLog, _path(workspace_id, "usage"), params, cursor)

    def events(
        self,
        workspace_id: WorkspaceId | None = None,
        *,
        types: list[str] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Pages[Event]:
        """Events, the oldest first. Without a `workspace_id` those of all workspaces that the token may see."""
        of = None if workspace_id is None else str(workspace_id)
        return self._list(Event, "/v1/events", {"workspace_id": of, "type": types, "limit": limit}, cursor)


def _path(workspace_id: WorkspaceId, *parts: str) -> str:
    return "/".join(["/v1/workspaces", *(quote(str(part), safe="") for part in (workspace_id, *parts))])


def _optional(amount: Amount | None) -> str | None:
    return None if amount is None else amount_text(amount)


def _use(credits: Amount | None, quantity: Amount | None) -> dict[str, Any]:
    return {"credits": _optional(credits), "quantity": _optional(quantity)}


def _instant(instant: datetime | None) -> str | None:
    if instant is not None and instant.tzinfo is None:
        raise ValueError("an instant needs a time zone: datetime.now(timezone.utc)")
    return None if instant is None else instant.isoformat()


def _pauses(count: int) -> Iterator[float]:
    """The pauses before the retries. They differ at random, so that those who failed together do not come back together."""
    for n in range(count):
        yield min(LAST_PAUSE_S, FIRST_PAUSE_S * 2**n) * random.uniform(0.5, 1)


def _json(answer: httpx.Response, idempotency_key: str | None) -> Any:
    try:
        return answer.json()
    except ValueError:
        raise NoAnswer(f"{answer.url}: the answer is not JSON, so it is not the server's", idempotency_key) from None


def _problem(answer: httpx.Response, idempotency_key: str | None) -> Problem:
    body: Any = None
    with suppress(ValueError):
        body = answer.json()
    retry_after_s = None
    with suppress(KeyError, ValueError):  # a date is not understood; the server sends seconds
        retry_after_s = max(0.0, float(answer.headers["Retry-After"]))
    return Problem(answer.status_code, body if isinstance(body, dict) else {}, retry_after_s, idempotency_key)
