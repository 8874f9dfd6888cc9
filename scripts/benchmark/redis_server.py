"""The Redis of this run: a few commands over its own protocol, and its processor time.

Deliberately absent: a client library, and everything that the product itself should be asked.
"""

import socket
from urllib.parse import urlsplit

from processes import Failure, cpu_s

TIMEOUT_S = 30


class Redis:
    def __init__(self, url):
        address = urlsplit(url)
        self.url = url
        self.socket = socket.create_connection((address.hostname, address.port), TIMEOUT_S)
        self.file = self.socket.makefile("rb")
        self.info = dict(
            line.split(":", 1) for line in self.command("INFO", "server").decode().split("\r\n") if ":" in line
        )
        self.pid = int(self.info["process_id"])

    def command(self, *words):
        parts = [f"*{len(words)}\r\n"] + [f"${len(word)}\r\n{word}\r\n" for word in words]
        self.socket.sendall("".join(parts).encode())
        line = self.file.readline().rstrip(b"\r\n")
        if line.startswith(b"$"):
            return self.file.read(int(line[1:]) + 2)[:-2]
        if line.startswith((b"+", b":")):
            return line[1:]
        raise Failure(f"redis: {words[0]}: {line.decode()}")

    def empty(self):
        self.command("FLUSHALL")

    def cpu_s(self):
        return cpu_s(self.pid)

    def close(self):
        self.socket.close()
