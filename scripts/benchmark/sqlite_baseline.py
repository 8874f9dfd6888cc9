"""The baselines of the embedded database: one transaction a command, as one would write it first.

WAL, synchronous = FULL, one writer, statements prepared once; each transaction updates a balance and
inserts a usage log, an entry and an event of about the product's sizes. Once through the crate that the
product uses (benches/one_transaction.rs), whose connection is a thread of its own, and once in this process,
with nothing between. Deliberately absent: HTTP, tokens, idempotency and every check, all of which the product
does besides.
"""

import json
import os
import random
import sqlite3
import time
import uuid
from contextlib import closing, contextmanager
from pathlib import Path

from processes import run

SLACK_S = 60  # to make the file and to end

ACCOUNTS = 10_000  # as many as the schema makes
PAYLOAD = '{"feature_code":"text.generate","credits":"0.25","current_credits":"99999999.75","note":"%s"}' % ("x" * 200)

SCHEMA = Path(__file__).with_suffix(".sql")


@contextmanager
def fresh_file(folder):
    """A name for a database, which is gone afterwards with the files beside it."""
    path = folder / f"baseline-{uuid.uuid4()}.db"
    try:
        yield path
    finally:
        for file in folder.glob(path.name + "*"):
            file.unlink()


def run_sqlx(folder, seconds):
    """Transactions per second through sqlx."""
    with fresh_file(folder) as path:
        program = os.environ["ONE_TRANSACTION_BIN"]
        return json.loads(run([program, str(path), str(seconds)], seconds + SLACK_S))


def run_in_process(folder, seconds):
    """Transactions per second with Python's own module."""
    with fresh_file(folder) as path, closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.executescript(SCHEMA.read_text())
        assert connection.execute("pragma synchronous").fetchone() == (2,), "synchronous is not FULL"
        done, begin = 0, time.monotonic()
        while time.monotonic() - begin < seconds:
            transact(connection, random.randrange(ACCOUNTS))
            done += 1
        return {"per_s": done / (time.monotonic() - begin), "done": done}


def transact(connection, account):
    command = os.urandom(16)
    connection.execute("begin immediate")
    update = "update accounts set balance = balance - 250000, seq = seq + 1 where id = ? returning balance, seq"
    balance, seq = connection.execute(update, (account,)).fetchall()[0]
    usage_log = (account, seq, command, "text.generate", 250_000, time.time_ns() // 1000)
    connection.execute("insert into usage_logs values (?, ?, ?, ?, ?, ?)", usage_log)
    entry = (account, seq, command, "grant", "consumed:text.generate", 250_000, balance)
    connection.execute("insert into entries values (?, ?, ?, ?, ?, ?, ?)", entry)
    connection.execute("insert into events (id, account, type, data) values (?, ?, ?, ?)",
                       (command, account, "CreditConsumed", PAYLOAD))
    connection.execute("commit")
