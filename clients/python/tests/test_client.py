"""The client against the real server, with a network that breaks where a test wants it to."""

import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal

import httpx
import pytest
from harness import Network, Server

from visionscope import Client, NoAnswer, Problem

Fault = Callable[[httpx.Response], httpx.Response]


class FaultyNetwork(Network):
    """Does to the first answers what it is told to."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(lambda request, send: self.faults.pop(0)(send()) if self.faults else send())
        self.faults = list(faults)

    @property
    def keys(self) -> list[str | None]:
        return [request.headers.get("Idempotency-Key") for request in self.requests]


def lose(answer: httpx.Response) -> httpx.Response:
    """The server has done it, and nobody hears of it."""
    answer.close()
    raise httpx.ReadError("connection reset")


def replace(status: int, headers: dict[str, str] | None = None) -> Fault:
    def fault(answer: httpx.Response) -> httpx.Response:
        answer.close()
        return httpx.Response(status, headers=headers, text="<html>a proxy says so</html>")

    return fault


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr("visionscope.client.time.sleep", found.append)
    return found


@pytest.mark.parametrize("fault", [lose, replace(503), replace(408), replace(429, {"Retry-After": "1"})])
def test_a_command_without_an_answer_is_sent_again_with_the_same_key(
    server: Server, workspace: str, pauses: list[float], fault: Fault
) -> None:
    network = FaultyNetwork(fault, fault)
    with Client(server.base_url, server.token, transport=network) as client:
        deducted = client.deduct(workspace, "video.render", credits=Decimal("2.5"))
        balance = client.credits(workspace).current_credits
    assert deducted.credits == Decimal("2.5")
    assert balance == deducted.current_credits == Decimal("997.5"), "three tries are one deduction"
    commands = network.keys[:3]
    assert len(set(commands)) == 1 and uuid.UUID(str(commands[0]))
    assert len(pauses) == 2 and all(0 < pause <= 1 for pause in pauses)


def test_an_answer_that_is_not_the_servers_is_none(server: Server, workspace: str) -> None:
    with Client(server.base_url, server.token, transport=FaultyNetwork(replace(200))) as client:
        with pytest.raises(NoAnswer, match="not JSON"):
            client.credits(workspace)
        assert client.credits(workspace).current_credits == 1000


def test_an_outage_ends_in_an_error_that_names_the_key(server: Server, workspace: str, pauses: list[float]) -> None:
    network = FaultyNetwork(lose, lose, lose)
    with Client(server.base_url, server.token, transport=network, retries=2) as client:
        with pytest.raises(NoAnswer, match="connection reset") as found:
            client.deduct(workspace, "video.render", credits=1, idempotency_key="order-17")
        assert found.value.idempotency_key == "order-17" and len(pauses) == 2
        assert client.deduct(workspace, "video.render", credits=1, idempotency_key="order-17").current_credits == 999


def test_the_pause_is_what_the_server_asks_for_unless_that_is_too_long(server: Server, workspace: str, pauses: list[float]) -> None:
    network = FaultyNetwork(replace(429, {"Retry-After": "7"}), replace(503, {"Retry-After": "3600"}))
    with Client(server.base_url, server.token, transport=network) as client, pytest.raises(Problem) as found:
        client.credits(workspace)
    assert (found.value.code, found.value.retry_after_s, pauses) == ("http-503", 3600, [7.0])


def test_a_refusal_is_not_tried_again_and_says_why(client: Client, server: Server, workspace: str) -> None:
    network = FaultyNetwork()
    with Client(server.base_url, server.token, transport=network) as other, pytest.raises(Problem) as found:
        other.deduct(workspace, "video.render", credits="1000.5", idempotency_key="big")
    problem = found.value
    assert (problem.status, problem.code, problem.idempotency_key) == (402, "insufficient-credits", "big")
    assert network.keys == ["big"]
    decision = problem.decision
    assert decision is not None and decision.requested_credits == Decimal("1000.5")
    assert decision.available_credits == Decimal(1000) and decision.remedies
    assert problem.body["available_credits"] == "1000" and "1000.5" in str(problem)

    with pytest.raises(Problem) as found:
        client.deduct(workspace, "video.render", credits="-1")
    assert found.value.decision is None
    assert [(error.pointer, error.code) for error in found.value.errors] == [("/credits", "amount-out-of-range")]


def test_a_token_may_be_a_function_that_is_called_for_each_try(server: Server, workspace: str, pauses: list[float]) -> None:
    network = FaultyNetwork(replace(503))
    tokens = iter([server.token, server.mint("--subject", "another"), "none"])
    with Client(server.base_url, lambda: next(tokens), transport=network) as client:
        client.credits(workspace)
        with pytest.raises(Problem) as found:
            client.credits(workspace)
    assert found.value.code == "invalid-token" and len({request.headers["Authorization"] for request in network.requests}) == 3


def test_an_amount_is_never_a_float(client: Client, workspace: str) -> None:
    for wrong in (0.1, True):
        with pytest.raises(TypeError, match="an amount must be"):
            client.deduct(workspace, "video.render", credits=wrong)  # type: ignore[arg-type]
    tiny = client.deduct(workspace, "video.render", credits=Decimal("0.000001"))
    assert tiny.current_credits == Decimal("999.999999")


def test_credits_are_bought_granted_held_captured_and_released(client: Client, workspace: str) -> None:
    bought = client.purchase(workspace, credits=100, amount_minor=1900, currency="EUR", payment_reference=f"in-{workspace}")
    assert (bought.credits, bought.current_credits) == (100, 1100)
    granted = client.grant(workspace, credits="10", source="promotion", reason="a present")
    assert granted.current_credits == 1110 and granted.spendable

    hold = client.place_hold(workspace, "video.render", quantity=100, explain=True)
    assert (hold.state, hold.credits, hold.unit_price) == ("open", 40, Decimal("0.4"))
    assert hold.decision is not None and hold.decision.limits[0].limit_credits == 500
    longer = client.extend_hold(workspace, hold.hold_id, expires_in_s=7200)
    assert longer.expires_at > hold.expires_at
    captured = client.capture_hold(workspace, hold.hold_id, quantity="50.5", metadata={"job": "17"})
    assert (captured.captured_credits, captured.released_credits) == (Decimal("20.2"), Decimal("19.8"))
    assert client.get_hold(workspace, hold.hold_id).captured_credits == Decimal("20.2")

    other = client.place_hold(workspace, "video.render", credits=5)
    assert client.release_hold(workspace, other.hold_id).state == "released"
    assert {one.hold_id: one.state for one in client.list_holds(workspace)} == {hold.hold_id: "captured", other.hold_id: "released"}
    balance = client.credits(workspace)
    assert (balance.current_credits, balance.held_credits) == (Decimal("1089.8"), 0)
    assert balance.period.end > datetime.now(timezone.utc) and len(balance.grants) == 3


def test_pages_are_read_to_their_end(client: Client, workspace: str) -> None:
    for n in range(5):
        client.deduct(workspace, "video.render", credits=n + 1, metadata={"n": str(n)})
    usage = client.usage(workspace, order="asc", limit=2)
    assert [log.credits for log in usage] == [1, 2, 3, 4, 5]
    assert [len(page.items) for page in usage.pages()] == [2, 2, 1], "it can be read again"
    assert next(iter(client.usage(workspace, order="desc", limit=1))).metadata == {"n": "4"}

    pages = list(client.events(workspace, types=["CreditConsumed"], limit=2).pages())
    events = [event for page in pages for event in page.items]
    assert [event.data["credits"] for event in events] == ["1", "2", "3", "4", "5"]
    assert pages[-1].next is not None
    client.deduct(workspace, "video.render", credits=6)
    later = client.events(workspace, types=["CreditConsumed"], cursor=pages[-1].next)
    assert [event.data["credits"] for event in later] == ["6"], "the last cursor leads to what comes later"


def test_jobs_are_sent_listed_and_canceled(client: Client, workspace: str) -> None:
    sent = [
        client.submit_job(workspace, "ends.nobody", {"n": n}, hold={"feature_code": "video.render", "credits": 5}) for n in range(3)
    ]
    assert {job.state for job in sent} == {"ready"} and sent[0].held_credits == 5
    again = client.submit_job(workspace, "ends.nobody", {"n": 9}, unique_key="one", idempotency_key="a")
    assert client.submit_job(workspace, "ends.nobody", {"n": 9}, unique_key="one", idempotency_key="b").job_id == again.job_id
    listed = list(client.list_jobs(workspace, limit=2, kind="ends.nobody"))
    assert [job.job_id for job in listed] == [job.job_id for job in reversed([*sent, again])]
    for job in listed:
        assert client.cancel_job(workspace, job.job_id).is_over
    assert {job.state for job in client.list_jobs(workspace, state="canceled")} == {"canceled"}
    assert client.credits(workspace).held_credits == 0


def test_a_newer_server_may_send_more(workspace: str, server: Server) -> None:
    def more(answer: httpx.Response) -> httpx.Response:
        answer.read()
        return httpx.Response(
            200, json={**answer.json(), "colour": "green", "grants": [], "period": {**answer.json()["period"], "x": 1}}
        )

    with Client(server.base_url, server.token, transport=FaultyNetwork(more)) as client:
        assert client.credits(workspace).current_credits == 1000
