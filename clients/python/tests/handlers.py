"""The worker that the tests start, and the handlers of its jobs. Started as a program, it takes jobs until it is told to stop."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from visionscope import Client, Done, GiveUp, Job, Retry, Worker


def charge(job: Job) -> Done:
    """Reports what its arguments say it has cost."""
    job.progress({"done": 1})
    return Done(result={"held": str(job.held_credits), "trace": job.traceparent}, credits=job.args["cost"], metadata={"gpu": "l4"})


def say(job: Job) -> dict[str, object]:
    return {"said": job.args["text"], "attempt": job.attempt, "pid": os.getpid()}


def be_quiet(job: Job) -> None:
    return None


def fail(job: Job) -> None:
    raise LookupError(f"nothing at {job.args['place']}")


def retry_once(job: Job) -> dict[str, int]:
    if job.attempt == 1:
        raise Retry("not yet", after_s=0)
    return {"attempt": job.attempt}


def give_up(job: Job) -> None:
    raise GiveUp("the file is not a video")


def hang(job: Job) -> None:
    """Hangs at its first attempt, with a child of its own."""
    if job.attempt == 1:
        child = subprocess.Popen(["sleep", "600"])
        with open(job.args["pids"], "w") as file:
            file.write(f"{os.getpid()} {child.pid}")
        while True:
            pass


def die(job: Job) -> None:
    os._exit(7)


def too_much(job: Job) -> dict[str, str]:
    return {"text": "x" * 20_000}


def wait_for_cancel(job: Job) -> Done:
    job.progress({"waits": True})
    while not job.cancelled:
        time.sleep(0.02)
    if job.args.get("ignores"):
        while True:
            time.sleep(1)
    return Done(result={"stopped": True}, credits=job.args["cost"])


def sleep(job: Job) -> Done:
    if "begun" in job.args:
        Path(job.args["begun"]).touch()
    for step in range(int(job.args["seconds"] * 20)):
        job.progress({"step": step, "pid": os.getpid()})
        time.sleep(0.05)
    return Done(result={"attempt": job.attempt}, credits=job.args.get("cost"))


def slow_first(job: Job) -> Done:
    """Takes far too long at its first attempt."""
    if job.attempt == 1:
        time.sleep(600)
    return Done(result={"attempt": job.attempt}, credits=job.args["cost"])


def refuse_to_start() -> None:
    raise MemoryError("there is no room for the model")


HANDLERS = {
    function.__name__.replace("_", "-"): function
    for function in (charge, say, be_quiet, fail, retry_once, give_up, hang, die, too_much, wait_for_cancel, sleep, slow_first)
}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    queue, slots, drain_s, cancel_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    handlers = {f"{queue}.{name}": function for name, function in HANDLERS.items()}
    with Client(os.environ["BASE_URL"], os.environ["TOKEN"]) as client:
        worker = Worker(
            client,
            queues=[queue],
            slots=slots,
            handlers=handlers,
            drain_s=drain_s,
            cancel_s=cancel_s,
            name=f"test-{queue}",
        )
        worker.run()


if __name__ == "__main__":
    main()
