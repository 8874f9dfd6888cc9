"""The server's answers as types.

Amounts are `Decimal`, never `float`. States and other names are `str`, because the server may get new ones. Fields that a
newer server sends besides are ignored.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
Amount = Decimal | int | str
"""An amount to send. Not a `float`: it cannot hold 0.1."""


def amount_text(amount: Amount) -> str:
    """The decimal string that is sent."""
    if isinstance(amount, bool) or not isinstance(amount, (Decimal, int, str)):
        raise TypeError(f"an amount must be a Decimal, an int or a str, not {type(amount).__name__}")
    return format(amount, "f") if isinstance(amount, Decimal) else str(amount)


def decode(cls: type[T], body: Mapping[str, Any]) -> T:
    """Makes an object of one of the classes below from an answer."""
    found = {name: _value(hint, body[name]) for name, hint in _hints(cls).items() if body.get(name) is not None}
    return cls(**found)


@cache
def _cached_hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _hints(cls: Any) -> dict[str, Any]:
    return _cached_hints(cls)


def _value(hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(one for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is list:
        return [_value(get_args(hint)[0], one) for one in value]
    if hint is Decimal:
        return Decimal(value)
    if hint is datetime:
        return datetime.fromisoformat(value.replace("Z", "+00:00"))
    return decode(hint, value) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else value


@dataclass(frozen=True, kw_only=True)
class GrantShare:
    """The part of an amount that is of one grant."""

    grant_id: str
    source: str
    credits: Decimal


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit that a deduction or a hold was checked against."""

    limit_scope: str
    mode: str
    limit_credits: Decimal
    used_credits: Decimal
    held_credits: Decimal
    headroom_credits: Decimal
    resets_at: datetime
    window_s: int | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Why a deduction or a hold was accepted or refused."""

    limits: list[Limit]
    grants: list[GrantShare]
    thresholds_crossed: list[Decimal]
    remedies: list[dict[str, Any]]
    """What would help, each on its own: its `kind`, and what that needs. Amounts in it are decimal strings."""
    requested_credits: Decimal | None = None
    quantity: Decimal | None = None
    unit_price: Decimal | None = None
    available_credits: Decimal | None = None
    overdraft_credits: Decimal | None = None


@dataclass(frozen=True, kw_only=True)
class FieldProblem:
    """A part of a request that is wrong: in the body (`pointer`) or in the query (`parameter`)."""

    code: str
    detail: str
    pointer: str | None = None
    parameter: str | None = None


@dataclass(frozen=True, kw_only=True)
class Provisioned:
    """A workspace was created."""

    workspace_id: str
    name: str
    time_zone: str
    current_credits: Decimal
    recorded_at: datetime


@dataclass(frozen=True, kw_only=True)
class Deduction:
    """Credits were deducted."""

    command_id: str
    workspace_id: str
    usage_id: str
    feature_code: str
    credits: Decimal
    grants: list[GrantShare]
    current_credits: Decimal
    used_this_month: Decimal
    recorded_at: datetime
    quantity: Decimal | None = None
    overdraft_credits: Decimal | None = None
    decision: Decision | None = None


@dataclass(frozen=True, kw_only=True)
class Purchase:
    """Credits were bought."""

    command_id: str
    workspace_id: str
    grant_id: str
    credits: Decimal
    bonus_credits: Decimal
    payment_reference: str
    debt_repaid: Decimal
    spendable: bool
    current_credits: Decimal
    recorded_at: datetime
    bonus_grant_id: str | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Granted:
    """Credits were granted."""

    command_id: str
    workspace_id: str
    grant_id: str
    source: str
    credits: Decimal
    priority: int
    effective_at: datetime
    reason: str
    debt_repaid: Decimal
    spendable: bool
    current_credits: Decimal
    recorded_at: datetime
    expires_at: datetime | None = None
    feature_scope: str | None = None


@dataclass(frozen=True, kw_only=True)
class Period:
    """A billing period, up to its `end` and without it."""

    start: datetime
    end: datetime


@dataclass(frozen=True, kw_only=True)
class Grant:
    """Credits that a workspace has got."""

    grant_id: str
    source: str
    amount: Decimal
    remaining: Decimal
    held: Decimal
    priority: int
    effective_at: datetime
    spendable: bool
    expires_at: datetime | None = None
    feature_scope: str | None = None


@dataclass(frozen=True, kw_only=True)
class UsageLimit:
    """The limit of what is used in a period."""

    credits: Decimal
    mode: str


@dataclass(frozen=True, kw_only=True)
class Credits:
    """The balance of a workspace."""

    workspace_id: str
    current_credits: Decimal
    available_credits: Decimal
    held_credits: Decimal
    debt_credits: Decimal
    overdraft_limit: Decimal
    used_this_month: Decimal
    uncollected_credits: Decimal
    period: Period
    grants: list[Grant]
    limit: UsageLimit | None = None


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Credits that are reserved, or were."""

    hold_id: str
    state: str
    feature_code: str
    credits: Decimal
    expires_at: datetime
    unit_price: Decimal | None = None
    overdraft_credits: Decimal | None = None
    user_id: str | None = None
    # A command answers with these.
    available_credits: Decimal | None = None
    current_credits: Decimal | None = None
    recorded_at: datetime | None = None
    decision: Decision | None = None
    # A look at the hold shows these.
    created_at: datetime | None = None
    closed_at: datetime | None = None
    captured_credits: Decimal | None = None
    usage_id: str | None = None
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Capture:
    """A hold was captured."""

    command_id: str
    workspace_id: str
    hold_id: str
    state: str
    usage_id: str
    feature_code: str
    captured_credits: Decimal
    released_credits: Decimal
    uncovered_credits: Decimal
    grants: list[GrantShare]
    available_credits: Decimal
    current_credits: Decimal
    used_this_month: Decimal
    recorded_at: datetime
    quantity: Decimal | None = None
    overdraft_credits: Decimal | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt that is over: `completed`, `failed` or `lost`."""

    attempt: int
    worker_id: str
    started_at: datetime
    ended_at: datetime
    outcome: str
    error: dict[str, str] | None = None
    """Its `class` and `detail`."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A worker has the job."""

    worker_id: str
    started_at: datetime
    leased_until: datetime
    deadline: datetime
    progress: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class SentJob:
    """A job as its sender sees it. A list shows it without `args`, `result`, `lease` and `attempts`."""

    job_id: str
    queue: str
    kind: str
    state: str
    priority: int
    run_at: datetime
    attempt: int
    max_attempts: int
    created_at: datetime
    workspace_id: str | None = None
    args: dict[str, Any] | None = None
    unique_key: str | None = None
    hold_id: str | None = None
    held_credits: Decimal | None = None
    captured_credits: Decimal | None = None
    result: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    """The `class` and the `detail` of the last attempt that has failed."""
    cancel_requested_at: datetime | None = None
    finished_at: datetime | None = None
    lease: Lease | None = None
    attempts: list[Attempt] | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ("completed", "failed", "canceled", "rejected")


@dataclass(frozen=True, kw_only=True)
class UsageLog:
    """An accepted deduction or capture."""

    usage_id: str
    seq: int
    command_id: str
    feature_code: str
    credits: Decimal
    refunded_credits: Decimal
    occurred_at: datetime
    recorded_at: datetime
    user_id: str | None = None
    quantity: Decimal | None = None
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """What has happened. Ignore an event whose `id` you have seen."""

    id: str
    type: str
    time: datetime
    workspaceid: str
    workspaceseq: str
    partition: int
    sequence: str
    data: dict[str, Any]
    """Amounts in it are decimal strings."""
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
