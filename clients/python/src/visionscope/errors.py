"""What can go wrong with a request."""

from __future__ import annotations

from typing import Any

from visionscope.models import Decision, FieldProblem, decode


class VisionScopeError(Exception):
    """The base of all errors of this package."""


class Problem(VisionScopeError):
    """The server has answered with a problem (RFC 9457). Decide by `code`: it is stable, and texts are not.

    More codes may be added. An answer that is not a problem, such as that of a proxy, has a code like `http-502`.
    """

    def __init__(
        self, status: int, body: dict[str, Any], retry_after_s: float | None = None, idempotency_key: str | None = None
    ) -> None:
        super().__init__(status, body, retry_after_s, idempotency_key)
        self.status = status
        self.body = body
        """The whole problem, with the members that this class does not name."""
        self.retry_after_s = retry_after_s
        self.idempotency_key = idempotency_key
        """The key that the command was sent with."""

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.detail}"

    @property
    def code(self) -> str:
        return str(self.body.get("code") or f"http-{self.status}")

    @property
    def detail(self) -> str:
        return str(self.body.get("detail") or self.body.get("title") or "the server did not say why")

    @property
    def decision(self) -> Decision | None:
        """Of a refused deduction or hold: what it was checked against, and what would help."""
        found = self.body.get("decision")
        return decode(Decision, found) if isinstance(found, dict) else None

    @property
    def errors(self) -> list[FieldProblem]:
        """The parts of the request that are wrong."""
        found = self.body.get("errors")
        return [decode(FieldProblem, one) for one in found] if isinstance(found, list) else []


class NoAnswer(VisionScopeError):
    """No answer arrived, also not to the retries: nobody knows whether the command was done.

    Send it again with the same `idempotency_key` to find out: it runs at most once.
    """

    def __init__(self, reason: str, idempotency_key: str | None = None) -> None:
        super().__init__(reason, idempotency_key)
        self.reason = reason
        self.idempotency_key = idempotency_key

    def __str__(self) -> str:
        return self.reason
