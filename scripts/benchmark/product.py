"""The product: one server process on one database, its tokens and its workspaces.

It runs with its defaults, but for a key, the plans, an address, and a bound on the requests of one
workspace that a hot one does not reach. Deliberately absent: any switch that makes it faster or less
durable than it is in production.
"""

import http.client
import json
import os
import secrets
import subprocess
import threading
import time
import uuid
from pathlib import Path

from processes import Failure, await_that, cpu_s, free_port, memory_mb, run, stop

START_TIMEOUT_S = 60
REQUEST_TIMEOUT_S = 30
COMMAND_TIMEOUT_S = 1800  # an audit reads all of history
PROVISIONERS = 16  # requests at once: enough to fill the server's batches
TOKEN_VALID_S = 24 * 3600
PLANS = Path(__file__).with_name("plans.toml")


class Product:
    """The program and the settings that all its processes in this run share."""

    def __init__(self, binary, folder):
        self.binary = os.path.abspath(binary)
        self.folder = folder
        self.secret = secrets.token_hex(32)
        (folder / "config").mkdir()

    def environment(self, settings):
        """Nothing of the caller's own configuration gets in."""
        foreign = ("VISIONSCOPE", "OTEL_", "DATABASE_URL", "REDIS_URL", "RUST_LOG")
        own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return own | {
            "VISIONSCOPE_CONFIG_DIR": str(self.folder / "config"),
            "VISIONSCOPE__PLANS__FILE": str(PLANS),
            "VISIONSCOPE__AUTH__KEYS__0__KID": "bench",
            "VISIONSCOPE__AUTH__KEYS__0__ALG": "HS256",
            "VISIONSCOPE__AUTH__KEYS__0__SECRET": self.secret,
            "VISIONSCOPE__LIMITS__WORKSPACE_RATE_PER_S": "10000000",
            "VISIONSCOPE__SERVER__DRAIN_DELAY_MS": "0",
        } | settings

    def command(self, *words, settings=None):
        """A command of the program, to its end."""
        environment = self.environment(settings or {})
        return run([self.binary, *words], COMMAND_TIMEOUT_S, env=environment, cwd=self.folder)

    def token(self):
        return self.command("token", "--workspace", "*", "--valid-for-s", str(TOKEN_VALID_S)).strip()


class Server:
    """One server process. `settings` says where its database and Redis are."""

    def __init__(self, product, name, settings):
        self.product = product
        self.port = free_port()
        self.log = product.folder / f"{name}-{self.port}.log"
        bind = {"VISIONSCOPE__SERVER__BIND": f"127.0.0.1:{self.port}"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [product.binary, "serve"], env=product.environment(settings | bind), cwd=product.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            await_that("the server is ready", self.is_ready, START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise

    def is_ready(self):
        if self.process.poll() is not None:
            raise Failure(f"the server ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def cpu_s(self):
        return cpu_s(self.process.pid)

    def memory_mb(self):
        return memory_mb(self.process.pid, "VmRSS")

    def peak_memory_mb(self):
        return memory_mb(self.process.pid, "VmHWM")

    def stop(self):
        stop(self.process)

    def send_all(self, token, requests):
        """Sends (method, path, body, idempotency key or none) over several connections; all must succeed."""
        waiting, failures, lock = iter(requests), [], threading.Lock()

        def work():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_TIMEOUT_S)
            try:
                while not failures:
                    with lock:
                        request = next(waiting, None)
                    if request is None:
                        return
                    method, path, body, key = request
                    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
                    if key:
                        headers["Idempotency-Key"] = key
                    connection.request(method, path, json.dumps(body), headers)
                    answer = connection.getresponse()
                    text = answer.read()
                    if answer.status not in (200, 201):
                        failures.append(f"{method} {path}: {answer.status} {text.decode()[:500]}")
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{error!r}")
            finally:
                connection.close()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(PROVISIONERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise Failure("\n".join(failures[:3]))


def provision(server, token, count):
    """Creates workspaces on the benchmark's plan and returns their ids."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    body = {"name": "Bench", "plan_code": "bench"}
    begin = time.monotonic()
    server.send_all(token, (("PUT", f"/v1/workspaces/{id}", body, None) for id in ids))
    print(f"  {count} workspaces in {time.monotonic() - begin:.1f} s", flush=True)
    return ids
