"""Processes of this run: started, measured and stopped by their ids.

What /proc says of processor time and memory is read here. Deliberately absent: stopping anything by
its name, and any process that this run did not start or was not handed by scripts/with-servers.
"""

import os
import random
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

STOP_TIMEOUT_S = 40  # the server's own deadlines add up to some thirty seconds
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Failure(Exception):
    """Ends the run; its text is for whoever started it."""


def free_port():
    """A port that nobody listens on, below the range from which the kernel picks ports for clients."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def run(command, timeout_s, **options):
    """Runs a command to its end and returns what it printed; a failure shows what it said."""
    try:
        done = subprocess.run(
            command, timeout=timeout_s, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, **options
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{command[0]} took more than {timeout_s} s") from None
    if done.returncode != 0:
        raise Failure(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def stop(process):
    """Asks a process to end, and kills it when it does not."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def await_that(what, condition, timeout_s, every_s=0.05):
    """Waits until a condition holds and returns what it gave."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(every_s)
    raise Failure(f"not within {timeout_s} s: {what}")


def read_line(stream, buffer, timeout_s, what):
    """One line of a pipe, within a time; `buffer` holds what was read beyond it."""
    deadline = time.monotonic() + timeout_s
    while b"\n" not in buffer:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
            raise Failure(f"no answer within {timeout_s} s: {what}")
        chunk = os.read(stream.fileno(), 65536)
        if not chunk:
            raise Failure(f"ended without an answer: {what}")
        buffer.extend(chunk)
    line, _, rest = bytes(buffer).partition(b"\n")
    buffer[:] = rest
    return line.decode()


def stat(pid):
    """The fields of /proc/PID/stat from the state on, or none when the process has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def parent_of(pid):
    fields = stat(pid)
    return int(fields[1]) if fields else None


def cpu_s(pid):
    """Processor seconds of a process and of its children that have ended."""
    fields = stat(pid)
    return sum(int(field) for field in fields[11:15]) / TICKS_PER_S if fields else 0.0


def family_cpu_s(pid):
    """The same, with its children that live."""
    children = []
    for entry in os.listdir("/proc"):
        fields = stat(entry) if entry.isdigit() else None
        if fields and int(fields[1]) == pid:
            children.append(sum(int(field) for field in fields[11:13]) / TICKS_PER_S)
    return cpu_s(pid) + sum(children)


def memory_mb(pid, field):
    """`VmRSS` (now) or `VmHWM` (the most there ever was) of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise Failure(f"/proc/{pid}/status says nothing of {field}")
