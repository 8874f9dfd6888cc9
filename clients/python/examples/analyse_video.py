"""A worker that analyses videos, and is paid for each second of them.

Start the demo server as the README of the repository says, and paste its `WORKSPACE` and these lines into a second terminal, in
the same folder:

    export WORKSPACE BILLING_TOKEN=$(target/release/visionscope token --workspace '*')
    python3 -m venv target/venv && target/venv/bin/pip install ./clients/python

Start the worker, and send it a made-up video of 12.5 seconds, or a file of yours:

    target/venv/bin/python clients/python/examples/analyse_video.py work &
    target/venv/bin/python clients/python/examples/analyse_video.py send 12.5

The analysis is made up too: it looks at one piece after the other, and each is a second of the video. What counts is the rest:
credits are held for the whole video, the sender sees the progress, and only the seconds that were analysed are charged, also
if the job is canceled on the way.
"""

import collections
import logging
import math
import os
import sys
import time
from decimal import Decimal
from pathlib import Path

from visionscope import Client, Done, GiveUp, Job, Problem, Worker

BILLING_URL = os.environ.get("BILLING_URL", "http://127.0.0.1:8080")
BILLING_TOKEN = os.environ.get("BILLING_TOKEN", "")  # for all workspaces
FEATURE = "video.render"  # the plan says what a second of it costs
BYTES_PER_SECOND = 250_000  # of a file, as it is for a video of two megabits per second


def analyse(job: Job) -> Done:
    path = job.args.get("path")
    total = Decimal(job.args["seconds"])
    if path is not None and not Path(path).is_file():
        raise GiveUp(f"there is no file {path}")  # another attempt would not find it either
    counts: collections.Counter[int] = collections.Counter()
    done = Decimal(0)
    while done < total and not job.cancelled:
        piece = min(Decimal(1), total - done)
        if path is None:
            time.sleep(float(piece))  # a made-up video is analysed as fast as it is played
        else:
            with open(path, "rb") as file:
                file.seek(int(done) * BYTES_PER_SECOND)
                counts.update(file.read(BYTES_PER_SECOND))
        done += piece
        job.progress({"seconds": str(done), "of": str(total)})
    return Done(result={"seconds": str(done), "bits_per_byte": entropy(counts)}, quantity=done, metadata={"job": job.job_id})


def entropy(counts: collections.Counter[int]) -> float:
    """How much is in a byte: 8 bits if all values are equally frequent, as in a file that is well compressed."""
    shares = [count / counts.total() for count in counts.values()]
    return round(-sum(share * math.log2(share) for share in shares), 3)


def seconds_of(video: str) -> tuple[Decimal, str | None]:
    """How long the video is, and its path if it is a file."""
    if not os.path.exists(video):
        return Decimal(video), None
    seconds = Decimal(os.path.getsize(video)) / BYTES_PER_SECOND
    return max(seconds.quantize(Decimal("0.001")), Decimal("0.001")), os.path.abspath(video)


def send(client: Client, workspace_id: str, video: str) -> None:
    seconds, path = seconds_of(video)
    args = {"seconds": str(seconds)} | ({"path": path} if path else {})
    hold = {"feature_code": FEATURE, "quantity": seconds}
    job = client.submit_job(workspace_id, "video_processing.analyse", args, hold=hold)
    print(f"job {job.job_id} is sent; it may cost {job.held_credits} credits")
    while not job.is_over:
        time.sleep(0.5)
        job = client.get_job(workspace_id, job.job_id)
        print(job.state, job.lease.progress if job.lease and job.lease.progress else "")
    print(f"it has cost {job.captured_credits or 0} credits: {job.result or job.error}")


def main() -> None:
    if not BILLING_TOKEN or sys.argv[1:2] not in (["work"], ["send"]):
        sys.exit(__doc__)
    with Client(BILLING_URL, BILLING_TOKEN) as client:
        if sys.argv[1] == "work":
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
            logging.getLogger("httpx").setLevel(logging.WARNING)
            handlers = {"video_processing.analyse": analyse}
            Worker(client, queues=["video_processing"], slots=2, handlers=handlers).run()
            return
        try:
            send(client, os.environ["WORKSPACE"], sys.argv[2])
        except Problem as problem:
            sys.exit(f"the server has refused it: {problem}")


if __name__ == "__main__":
    main()
