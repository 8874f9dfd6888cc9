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

from processes import run

SLACK_S = 60  # to make the file and to end

ACCOUNTS = 10_000
PAYLOAD = '{"feature_code":"text.generate","credits":"0.25","current_credits":"99999999.75","note":"%s"}' % ("x" * 200)

SCHEMA = """
pragma journal_mode = wal;
pragma synchronous = full;
create table accounts (id integer primary key, balance integer not null, seq integer not null) strict;
create table usage_logs (
    account integer not null, seq integer not null, command blob not null, feature text not null,
    credits integer not null, recorded_at integer not null, primary key (account, seq)
) strict, without rowid;
create table entries (
    account integer not null, seq integer not null, command blob not null, from_account text not null,
    to_account text not null, amount integer not null, balance_after integer not null, primary key (account, seq)
) strict, without rowid;
create table events (
    seq integer primary key, id blob not null, account integer not null, type text not null, data text not null
) strict;
"""


def run_sqlx(folder, seconds):
    """Transactions per second through sqlx."""
    path = new_file(folder)
    try:
        program = os.environ["ONE_TRANSACTION_BIN"]
        return json.loads(run([program, str(path), str(seconds)], seconds + SLACK_S))
    finally:
        remove(path)


def new_file(folder):
    return folder / f"baseline-{uuid.uuid4()}.db"


def remove(path):
    for file in path.parent.glob(path.name + "*"):
        file.unlink()


def run_in_process(folder, seconds):
    """Transactions per second with Python's own module."""
    path = new_file(folder)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.executescript(SCHEMA)
        connection.execute("begin")
        rows = ((account, 10**15) for account in range(ACCOUNTS))
        connection.executemany("insert into accounts (id, balance, seq) values (?, ?, 0)", rows)
        connection.execute("commit")
        assert connection.execute("pragma synchronous").fetchone() == (2,), "synchronous is not FULL"
        done, begin = 0, time.monotonic()
        while time.monotonic() - begin < seconds:
            transact(connection, random.randrange(ACCOUNTS))
            done += 1
        return {"per_s": done / (time.monotonic() - begin), "done": done}
    finally:
        connection.close()
        remove(path)


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
