"""What is shown to users is true: the programs of the README, and the example."""

import os
import re
import subprocess
import sys
from pathlib import Path

from harness import ROOT, Server, wait_until

from visionscope import Client

FOLDER = ROOT / "clients" / "python"
EXAMPLE = FOLDER / "examples" / "analyse_video.py"


def environment(server: Server, workspace: str) -> dict[str, str]:
    return {**os.environ, "BILLING_URL": server.base_url, "BILLING_TOKEN": server.token, "WORKSPACE": workspace}


def snippets(tmp_path: Path) -> list[Path]:
    texts = re.findall(r"^```python\n(.*?)^```$", (FOLDER / "README.md").read_text(), re.M | re.S)
    paths = [tmp_path / f"snippet_{n}.py" for n in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def test_the_programs_of_the_readme_do_what_it_says(server: Server, client: Client, workspace: str, tmp_path: Path) -> None:
    use_credits, run_jobs = snippets(tmp_path)
    done = subprocess.run(
        [sys.executable, use_credits], env=environment(server, workspace), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first == "997.5" and "'kind': " in done.stdout and last.endswith(" video.render 2.5")

    hold = {"feature_code": "video.render", "credits": 20}
    whole = client.submit_job(workspace, "video_processing.analyse", {"video": "s3://videos/17.mp4"}, hold=hold)
    part = client.submit_job(workspace, "video_processing.analyse", {"video": "s3://videos/18.part"}, hold=hold)
    nothing = client.submit_job(workspace, "video_processing.analyse", {}, hold=hold)
    worker = subprocess.Popen([sys.executable, run_jobs], env=environment(server, workspace), stderr=subprocess.PIPE, text=True)
    try:
        over = client.wait_for_job(workspace, whole.job_id, timeout_s=30, poll_s=0.1)
        assert (over.result, str(over.captured_credits)) == ({"scenes": 12}, "17.5")
        over = client.wait_for_job(workspace, nothing.job_id, timeout_s=30, poll_s=0.1)
        assert (over.state, over.attempt) == ("failed", 1)
        wait_until(lambda: client.get_job(workspace, part.job_id).state == "waiting", "the retry")
        later = client.get_job(workspace, part.job_id)
        assert later.attempts is not None and 50 < (later.run_at - later.attempts[0].ended_at).total_seconds() < 70
        client.cancel_job(workspace, part.job_id)
        worker.terminate()
        _, log = worker.communicate(timeout=20)
        assert worker.returncode == 0 and server.token not in log and "has stopped" in log, log
    finally:
        worker.kill()
        worker.wait()


def test_the_example_is_paid_for_each_second(server: Server, client: Client, workspace: str, tmp_path: Path) -> None:
    file = tmp_path / "video.mp4"
    file.write_bytes(bytes(range(256)) * 2000)  # 512,000 bytes are 2.048 seconds
    worker = subprocess.Popen([sys.executable, str(EXAMPLE), "work"], env=environment(server, workspace))
    try:
        for video, cost in ((str(file), "0.8192"), ("7.5", "3")):
            command = [sys.executable, str(EXAMPLE), "send", video]
            sent = subprocess.run(command, env=environment(server, workspace), capture_output=True, text=True, timeout=60)
            assert sent.returncode == 0 and f"it has cost {cost} credits" in sent.stdout, sent.stdout + sent.stderr
            assert ("'bits_per_byte': 8.0" in sent.stdout) == (video == str(file))
        assert re.search(r"^running .*'seconds': '[1-7]'", sent.stdout, re.M), sent.stdout
        usage = client.usage(workspace, order="asc")
        assert [str(log.quantity) for log in usage] == ["2.048", "7.5"]
        worker.terminate()
        assert worker.wait(20) == 0
    finally:
        worker.kill()
        worker.wait()
