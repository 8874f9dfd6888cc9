"""The load generator: wrk with a script, one thread per process.

One thread of wrk makes far more requests than two cores can answer, and every further one would only
take time from what is measured. Deliberately absent: a constant rate; each client sends its next
request when it has the answer to the one before, as pgbench's clients do.
"""

import json
import resource
import secrets
import subprocess
from pathlib import Path

from processes import Failure, stop

TIMEOUT_S = 30  # for one answer
SLACK_S = 60  # to start and to end
SCRIPTS = Path(__file__).parent


def generator_cpu_s():
    """Processor seconds of all generators that have ended, pgbench among them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Load:
    """One wrk under way."""

    def __init__(self, script, port, clients, seconds, arguments):
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", f"{TIMEOUT_S}s",
                   "-s", str(SCRIPTS / script), f"http://127.0.0.1:{port}", "--", *map(str, arguments)]
        self.seconds = seconds
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def result(self):
        try:
            output, _ = self.process.communicate(timeout=self.seconds + SLACK_S)
        except subprocess.TimeoutExpired:
            raise Failure("wrk did not end") from None
        lines = [line for line in output.splitlines() if line.startswith("{")]
        if self.process.returncode != 0 or not lines:
            raise Failure(f"wrk: {output[-3000:]}")
        result = json.loads(lines[-1])
        if any(result["errors"].values()) or result["done"] == 0:
            raise Failure(f"requests failed: {output[-3000:]}")
        return result

    def stop(self):
        stop(self.process)


def deduct(port, clients, seconds, token_file, ids_file):
    """Deducts from the workspaces of a file, at random."""
    return Load("deduct.lua", port, clients, seconds, [token_file, ids_file, secrets.token_hex(8)])


def read(port, clients, seconds, token_file, paths_file):
    """Gets the paths of a file, at random."""
    return Load("read.lua", port, clients, seconds, [token_file, paths_file])
