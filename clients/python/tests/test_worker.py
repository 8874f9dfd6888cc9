"""Workers against the real server: what they end, what is cut, and what is left when one of the two is killed."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from handlers import refuse_to_start, say
from harness import Network, Server, WorkerProcess, dead_letters, is_running, wait_until

from visionscope import Client, Job, Problem, Worker
from visionscope.link import Link, Run, _portions
from visionscope.models import SentJob

Start = Callable[..., WorkerProcess]
HOLD = {"feature_code": "video.render", "credits": "20"}


def finished(client: Client, job: SentJob, timeout_s: float = 30) -> SentJob:
    return client.wait_for_job(job.workspace_id or "", job.job_id, timeout_s=timeout_s, poll_s=0.1)


def has_begun(client: Client, job: SentJob) -> SentJob:
    def look() -> SentJob | None:
        found = client.get_job(job.workspace_id or "", job.job_id)
        return found if found.state == "running" else None

    found = wait_until(look, f"the begin of {job.kind}")
    assert found is not None
    return found


def test_a_metered_job_is_charged_what_its_handler_reports(client: Client, workspace: str, start_worker: Start) -> None:
    costs = [Decimal("17.5"), Decimal("0.000001"), Decimal(0), Decimal(25)]
    jobs = [client.submit_job(workspace, "charges.charge", {"cost": str(cost)}, hold=HOLD) for cost in costs]
    plain = client.submit_job(workspace, "charges.say", {"text": "für ⛄"})
    quiet = client.submit_job(workspace, "charges.be-quiet", hold=HOLD)
    worker = start_worker("charges")
    for job, cost in zip(jobs, costs, strict=True):
        done = finished(client, job)
        assert (done.state, done.captured_credits or 0) == ("completed", cost)
        assert done.result is not None and done.result["held"] == "20"
    done = finished(client, plain)
    assert done.result is not None and (done.result["said"], done.result["attempt"]) == ("für ⛄", 1)
    assert finished(client, quiet).captured_credits == 20, "a handler that reports no cost costs what is held"
    total = sum(costs) + 20
    balance = client.credits(workspace)
    assert (balance.used_this_month, balance.current_credits, balance.held_credits) == (total, 1000 - total, 0)
    usage = list(client.usage(workspace))
    assert sum(log.credits for log in usage) == total and {"gpu": "l4"} in [log.metadata for log in usage]
    assert worker.process.poll() is None


def test_a_handler_that_fails_is_tried_again_and_then_is_a_dead_letter(client: Client, workspace: str, start_worker: Start) -> None:
    failing = client.submit_job(workspace, "errors.fail", {"place": "s3://none"}, hold=HOLD)
    dying = client.submit_job(workspace, "errors.die")
    retried = client.submit_job(workspace, "errors.retry-once")
    given_up = client.submit_job(workspace, "errors.give-up", hold=HOLD)
    too_much = client.submit_job(workspace, "errors.too-much")
    unknown = client.submit_job(workspace, "errors.unknown")
    free = client.submit_job(workspace, "errors.charge", {"cost": "5"})
    start_worker("errors")

    over = finished(client, failing)
    assert over.state == "failed" and over.attempts is not None
    assert [(attempt.outcome, attempt.error and attempt.error["class"]) for attempt in over.attempts] == [
        ("failed", "LookupError")
    ] * 2
    assert (
        over.error is not None and over.error["detail"].startswith("nothing at s3://none\n") and "in fail" in over.error["detail"]
    )
    assert finished(client, retried).result == {"attempt": 2}
    over = finished(client, given_up)
    assert (over.state, over.attempt, over.error) == ("failed", 1, {"class": "GiveUp", "detail": "the file is not a video"})
    for job, error_class in ((dying, "process-died"), (too_much, "ValueError"), (unknown, "no-handler")):
        over = finished(client, job)
        assert over.error is not None and (over.state, over.attempt, over.error["class"]) == ("failed", 2, error_class)
    assert finished(client, free).state == "completed", "a cost of a job without a hold is not charged"

    letters = {letter["job_id"]: letter["error_class"] for letter in dead_letters(client, workspace)}
    assert (letters[failing.job_id], letters[given_up.job_id], len(letters)) == ("LookupError", "GiveUp", 5)
    balance = client.credits(workspace)
    assert (balance.current_credits, balance.held_credits) == (1000, 0)


def test_what_the_server_does_not_take_from_a_handler_is_a_failure_of_that_job_alone(
    client: Client, workspace: str, start_worker: Start
) -> None:
    strict = client.submit_job(workspace, "ends.charge", {"cost": "20.5"}, hold={**HOLD, "overrun": "reject"})
    negative = client.submit_job(workspace, "ends.charge", {"cost": "-1"}, hold=HOLD)
    good = [client.submit_job(workspace, "ends.charge", {"cost": "1"}, hold=HOLD) for _ in range(6)]
    start_worker("ends", slots=8)
    for job, code in ((strict, "capture-exceeds-hold"), (negative, "amount-out-of-range")):
        over = finished(client, job)
        assert over.error is not None and (over.state, over.attempt, over.error["class"]) == ("failed", 1, code)
    assert [finished(client, job).captured_credits for job in good] == [1] * 6
    assert client.credits(workspace).held_credits == 0


def test_a_handler_that_hangs_is_cut_at_its_timeout(client: Client, workspace: str, start_worker: Start, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    job = client.submit_job(workspace, "short.hang", {"pids": str(pids)}, hold=HOLD)
    start_worker("short", slots=1)
    begun = time.monotonic()
    done = finished(client, job)
    assert 1.5 < time.monotonic() - begun < 15
    assert (done.state, done.attempt) == ("completed", 2), "its slot is free again"
    assert done.attempts is not None and done.attempts[0].error is not None and done.attempts[0].error["class"] == "timeout"
    assert not any(is_running(int(pid)) for pid in pids.read_text().split()), "what it has started is cut too"


def test_progress_is_told_and_a_handler_hears_that_its_job_is_canceled(client: Client, workspace: str, start_worker: Start) -> None:
    polite = client.submit_job(workspace, "cancels.wait-for-cancel", {"cost": "2"}, hold=HOLD)
    deaf = client.submit_job(workspace, "cancels.wait-for-cancel", {"ignores": True}, hold=HOLD)
    start_worker("cancels", cancel_s=0.5)
    for job in (polite, deaf):

        def progress(job: SentJob = job) -> dict[str, Any] | None:
            lease = has_begun(client, job).lease
            return lease.progress if lease is not None else None

        assert wait_until(progress, "its progress") == {"waits": True}
        assert client.cancel_job(workspace, job.job_id).state == "running"
    over = finished(client, polite)
    assert (over.state, over.result, over.captured_credits) == ("completed", {"stopped": True}, 2), (
        "it has returned what it has cost"
    )
    assert finished(client, deaf).state == "canceled", "it was cut"
    balance = client.credits(workspace)
    assert (balance.used_this_month, balance.held_credits) == (2, 0)


def test_a_worker_that_is_told_to_stop_ends_what_it_runs(
    client: Client, workspace: str, start_worker: Start, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    job = client.submit_job(workspace, "drains.sleep", {"seconds": 2, "begun": str(begun), "cost": "3"}, hold=HOLD)
    worker = start_worker("drains", slots=2)
    wait_until(begun.exists, "the begin of the handler")
    worker.terminate()
    wait_until(lambda: worker.has_logged("stops, because of SIGTERM"), "the log of SIGTERM")
    later = client.submit_job(workspace, "drains.say", {"text": "later"})
    assert worker.process.wait(20) == 0
    done = client.get_job(workspace, job.job_id)
    assert (done.state, done.captured_credits, done.attempt) == ("completed", 3, 1)
    waiting = wait_until(lambda: [one for one in client.list_jobs(workspace, state="ready")], "the other job is left or given back")
    assert [(one.job_id, one.attempt) for one in waiting] == [(later.job_id, 0)]
    client.cancel_job(workspace, later.job_id)


def test_a_worker_without_jobs_stops_soon_although_it_waits_for_some(start_worker: Start) -> None:
    worker = start_worker("drains")
    wait_until(lambda: worker.has_logged("takes jobs of"), "the log of its registration")
    time.sleep(1)
    began = time.monotonic()
    worker.terminate()
    assert worker.process.wait(20) == 0
    assert time.monotonic() - began < 10, "one request for jobs waits for 20 s"


@pytest.mark.parametrize("signals", [1, 2])
def test_a_worker_that_is_told_to_stop_gives_back_what_takes_too_long(
    client: Client, workspace: str, start_worker: Start, tmp_path: Path, signals: int
) -> None:
    begun = tmp_path / "begun"
    job = client.submit_job(workspace, "releases.sleep", {"seconds": 60, "begun": str(begun)})
    worker = start_worker("releases", drain_s=1 if signals == 1 else 60)
    wait_until(begun.exists, "the begin of the handler")
    for _ in range(signals):
        worker.terminate()
        wait_until(lambda: worker.has_logged("SIGTERM"), "the log of SIGTERM")
    assert worker.process.wait(20) == 0
    found = client.get_job(workspace, job.job_id)
    assert (found.state, found.attempt) == ("ready", 0), "the attempt does not count"
    client.cancel_job(workspace, job.job_id)


def test_the_jobs_of_killed_and_silent_workers_are_taken_by_another(client: Client, workspace: str, start_worker: Start) -> None:
    jobs = [client.submit_job(workspace, "killed.slow-first", {"cost": "4"}, hold=HOLD) for _ in range(2)]
    killed, silent = start_worker("killed", slots=1), start_worker("killed", slots=1)
    for job in jobs:
        has_begun(client, job)
    os.kill(silent.process.pid, signal.SIGSTOP)
    killed.kill()
    start_worker("killed", slots=2)
    for job in jobs:
        done = finished(client, job, timeout_s=40)
        assert done.attempts is not None
        assert [attempt.outcome for attempt in done.attempts] == ["lost", "completed"]
        assert (done.state, done.result, done.captured_credits) == ("completed", {"attempt": 2}, 4)
    os.kill(silent.process.pid, signal.SIGCONT)
    wait_until(lambda: silent.has_logged("was lost: it is stopped"), "the silent worker hears that it has lost its job")
    silent.terminate()
    assert silent.process.wait(20) == 0
    balance = client.credits(workspace)
    assert (balance.used_this_month, balance.held_credits) == (8, 0)


def test_handlers_end_with_the_worker_that_is_killed(client: Client, workspace: str, start_worker: Start, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    job = client.submit_job(workspace, "orphans.hang", {"pids": str(pids)})
    worker = start_worker("orphans", slots=1)
    started = [
        int(pid) for pid in wait_until(lambda: pids.read_text() if pids.exists() else "", "the begin of the handler").split()
    ]
    assert len(started) == 2 and all(is_running(pid) for pid in started)
    worker.kill()
    wait_until(lambda: not any(is_running(pid) for pid in started), "the end of the handler")
    client.cancel_job(workspace, job.job_id)


def test_a_killed_server_loses_no_job_and_charges_none_twice(
    client: Client, server: Server, workspace: str, start_worker: Start
) -> None:
    costs = [Decimal(n) / 4 for n in range(1, 25)]
    jobs = [client.submit_job(workspace, "crash.sleep", {"seconds": 0.3, "cost": str(cost)}, hold=HOLD) for cost in costs]
    long = client.submit_job(workspace, "crash.sleep", {"seconds": 6, "cost": "7"}, hold=HOLD)
    worker = start_worker("crash", slots=4)
    for completed in (3, 10):

        def so_many(completed: int = completed) -> bool:
            return len(list(client.list_jobs(workspace, state="completed"))) >= completed

        wait_until(so_many, f"the end of {completed} jobs")
        server.kill()
        # Jobs end meanwhile, and the worker cannot tell anybody.
        wait_until(lambda: re.search("cannot end jobs", worker.log.read_text()), "the worker notices", 20)
        server.start()
    over = [finished(client, job, timeout_s=60) for job in [*jobs, long]]
    assert {job.state for job in over} == {"completed"}
    assert [job.captured_credits for job in over] == [*costs, 7]
    balance, total = client.credits(workspace), sum(costs) + 7
    assert (balance.used_this_month, balance.current_credits, balance.held_credits) == (total, 1000 - total, 0)
    assert balance.available_credits == balance.current_credits
    holds = list(client.list_holds(workspace))
    assert {hold.state for hold in holds} == {"captured"} and len(holds) == len(over)
    assert sum(log.credits for log in client.usage(workspace)) == total
    types = [event.type for event in client.events(workspace)]
    assert types.count("JobCompleted") == types.count("CreditsHeld") == len(over) and "HoldReleased" not in types
    assert worker.process.poll() is None


def test_a_worker_in_a_thread_is_stopped_by_another(client: Client, server: Server, workspace: str) -> None:
    worker = Worker(client, queues=["threads"], handlers={"threads.say": say}, poll_s=1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    done = [finished(client, client.submit_job(workspace, "threads.say", {"text": str(n)})) for n in range(3)]
    assert [job.result and job.result["said"] for job in done] == ["0", "1", "2"]
    assert len({job.result and job.result["pid"] for job in done}) == 1, "one process serves one job after the other"
    worker.stop()
    thread.join(20)
    assert not thread.is_alive()


def test_a_worker_that_the_server_has_forgotten_registers_again_and_one_that_it_drains_ends(
    client: Client, server: Server, workspace: str
) -> None:
    forgotten: list[str] = []

    def deal(request: httpx.Request, send: Callable[[], httpx.Response]) -> httpx.Response:
        what = request.url.path.rsplit("/", 1)[-1]
        if what == "lease" and not forgotten:
            forgotten.append(request.url.path)
            return httpx.Response(404, json={"code": "worker-not-found", "detail": "it is not known"})
        if what == "heartbeat":
            answer = send()
            answer.read()
            return httpx.Response(200, json={**answer.json(), "drain": True})
        return send()

    network = Network(deal)
    with Client(server.base_url, server.token, transport=network) as other:
        job = client.submit_job(workspace, "threads.say", {"text": "after all"})
        thread = threading.Thread(target=Worker(other, queues=["threads"], handlers={"threads.say": say}, poll_s=1).run)
        thread.start()
        assert finished(client, job).attempt == 1
        thread.join(20)
        assert not thread.is_alive(), "it was told to drain"
    paths = [request.url.path for request in network.requests]
    assert paths.count("/v1/workers") == 2
    assert len({path for path in paths if path.endswith("/lease")}) == 2, "it has a new id"


def test_a_request_that_is_refused_for_one_job_is_repeated_for_the_others() -> None:
    def deal(request: httpx.Request) -> httpx.Response:
        sent = json.loads(request.content)["jobs"]
        if any(job["actual"]["credits"] == "-1" for job in sent):
            return httpx.Response(422, json={"code": "amount-out-of-range", "detail": "negative"})
        return httpx.Response(200, json={"results": [{"job_id": job["job_id"], "status": 200} for job in sent]})

    answers: dict[str, int] = {}
    runs = [Run({"job_id": f"{n}", "lease_id": "x"}, 0.0, how="complete") for n in range(3)]
    for run, credits in zip(runs, ("1", "-1", "2"), strict=True):
        run.end = {"actual": {"credits": credits}}
    with Client("http://127.0.0.1", "", transport=httpx.MockTransport(deal)) as client:
        link: Link[Run] = Link(
            client,
            {"slots": 3},
            1,
            begin=lambda jobs: None,
            heed=lambda runs, answer: None,
            answered=lambda run, status, problem: answers.update({run.job["job_id"]: status}),
        )
        link._send_end("complete", runs)
    assert answers == {"0": 200, "1": 422, "2": 200}


def test_what_is_told_at_once_is_not_too_long_for_the_server() -> None:
    def run(n: int, size: int) -> Run:
        return Run({"job_id": str(n), "lease_id": "x"}, 0.0, how="complete", end={"result": {"text": "ä" * size}})

    runs = [run(n, 8_000) for n in range(9)]
    portions = list(_portions(runs))
    assert [one for portion in portions for one in portion] == runs
    assert [len(portion) for portion in portions] == [3, 3, 3]
    assert list(_portions([run(0, 100_000)])), "one that is too long for any request is sent, and refused"
    assert list(_portions([])) == []


def test_a_worker_whose_processes_cannot_start_gives_its_jobs_back_and_ends(client: Client, workspace: str) -> None:
    job = client.submit_job(workspace, "threads.say", {"text": "too big"})
    with pytest.raises(RuntimeError, match="could not start, and ended with code 1"):
        Worker(client, queues=["threads"], handlers={"threads.say": say}, setup=refuse_to_start, poll_s=1).run()
    found = client.get_job(workspace, job.job_id)
    assert (found.state, found.attempt) == ("ready", 0)
    client.cancel_job(workspace, job.job_id)


def test_a_worker_that_cannot_work_says_so_at_once(client: Client) -> None:
    with pytest.raises(TypeError, match="another process can import"):
        Worker(client, queues=["threads"], handlers={"threads.say": lambda job: None})
    with pytest.raises(Problem, match="there is no queue nowhere") as found:
        Worker(client, queues=["nowhere"], handlers={"threads.say": say}).run()
    assert found.value.code == "invalid-field"


def test_progress_that_the_server_would_not_take_is_an_error_of_the_handler() -> None:
    job = Job("1", "a.b", "a", {}, 1, 5, 60, "c", "2")
    for progress, error in (({"x": float("nan")}, ValueError), ({"x": "y" * 1024}, ValueError), ([1], TypeError)):
        with pytest.raises(error):
            job.progress(progress)  # type: ignore[arg-type]
