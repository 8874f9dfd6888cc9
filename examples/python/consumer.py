"""A reference consumer of the event streams: keeps the credits consumed per workspace and feature.

It is made to be copied. `apply` is the work; replace it and the table `consumed` by your own. The rest is what every
consumer needs, as docs/EVENTS.md describes it. README.md, one folder up, says what each part is for.

Every event takes effect exactly once, in order: the position in each partition is stored in the transaction of the
effect. So it does not matter how often an event comes, from where, or which of several consumers gets it.

    consumer.py           consumes until SIGTERM
    consumer.py replay    tries the dead letters again, once each
"""

import collections
import contextlib
import dataclasses
import decimal
import http.client
import json
import logging
import os
import random
import signal
import socket
import sqlite3
import sys
import threading
import time
import urllib.error
import urllib.request

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/")
BILLING_URL = os.environ.get("BILLING_URL", "http://127.0.0.1:8080").rstrip("/")
BILLING_TOKEN = os.environ.get("BILLING_TOKEN", "")  # for all workspaces, with the scope events:read
DATABASE = os.environ.get("CONSUMER_DATABASE", "consumer.db")  # one for all consumers of the group
GROUP = os.environ.get("CONSUMER_GROUP", "credits-python")
NAME = os.environ.get("CONSUMER_NAME", socket.gethostname())  # of its own, and the same after a restart


def seconds(name, default):
    """A setting: times in seconds, separated by commas."""
    try:
        return [float(text) for text in os.environ.get(name, default).split(",")]
    except ValueError as error:
        sys.exit(f"{name} must be seconds, such as {default}: {error}")


RETRY_DELAYS_S = seconds("RETRY_DELAYS_S", "1,5,30,120,600")
IDLE_LIMIT_S = seconds("IDLE_LIMIT_S", "60")[0]  # after which others take an entry
GAP_WAIT_S = seconds("GAP_WAIT_S", "2")[0]  # how long another consumer may take to close a gap
FAIL_FEATURE = os.environ.get("FAIL_FEATURE")  # for tests: an event about this feature fails

PARTITIONS = 16
SLOTS = 256  # entries that this consumer has in hand at once
HTTP_PAGE = 200
MAX_HELD = 10_000  # events that have failed or wait behind one; more are a fault of this program, so it stops reading
DEAD_LETTERS = 10_000  # kept in the stream of each partition
MAX_ERROR = 500  # characters of an error that are kept
REFRESH_S = 1.0  # how often generations and abandoned entries are looked up
WAIT_S = 1.0  # the longest wait for new entries
GAP_POLL_S = 0.02  # how often the position is read while another consumer closes a gap
TIMEOUT_S = 10.0  # of every call to Redis, to the server and to the database
MAX_BACKOFF_S = 5.0

SCHEMA = """
create table if not exists consumed (
    workspace_id text not null, feature_code text not null, micro_credits integer not null,
    primary key (workspace_id, feature_code)) strict;
-- The last event of each partition that has been dealt with.
create table if not exists positions (
    partition integer primary key, sequence integer not null, event_id text not null) strict;
-- Events that have failed, and later ones of the same workspace. Those that are dead do not hold others back.
create table if not exists held (
    partition integer not null, sequence integer not null, event_id text not null, workspace_id text not null,
    event text not null, attempts integer not null, due real not null, error text not null, is_dead integer not null,
    primary key (partition, sequence)) strict;
create index if not exists held_of_workspace on held (workspace_id, is_dead, sequence);
"""

Event = collections.namedtuple("Event", "partition sequence event_id workspace_id text")
log = logging.getLogger("consumer")


class Fatal(Exception):
    """A person must act; trying again does not help."""


def apply(db, event):
    """The work, in the transaction that stores the position. Any exception but sqlite3.OperationalError is the
    event's fault: its effect is undone, and it is tried again later."""
    if event["type"] != "CreditConsumed":
        return
    data = event["data"]
    micro_credits = int(decimal.Decimal(data["credits"]).scaleb(6))
    db.execute(
        "insert into consumed values (?, ?, ?) on conflict do update set micro_credits = micro_credits + excluded.micro_credits",
        (event["workspaceid"], data["feature_code"], micro_credits))
    if data["feature_code"] == FAIL_FEATURE:
        raise ValueError("FAIL_FEATURE names this feature")


class Store:
    """Positions, held events and the effects, in one database, so that they change in one transaction."""

    def __init__(self):
        self.db = sqlite3.connect(DATABASE, timeout=TIMEOUT_S, isolation_level=None)
        self.db.execute("pragma journal_mode = wal")
        self.db.execute("pragma synchronous = full")  # what is acknowledged to Redis must survive a power cut
        self.db.executescript(SCHEMA)

    @contextlib.contextmanager
    def transaction(self):
        self.db.execute("begin immediate")
        try:
            yield
            self.db.execute("commit")
        except BaseException:
            self.db.execute("rollback")
            raise

    def position(self, partition):
        row = self.db.execute("select sequence, event_id from positions where partition = ?", (partition,)).fetchone()
        return row or (0, "")

    def deal_with(self, partition, events):
        """Deals with the events that follow the position without a gap. Returns the new position."""
        last, _ = self.position(partition)
        if not any(event.sequence == last + 1 and event.text for event in events):
            return last
        with self.transaction():
            last, event_id = self.position(partition)
            for event in events:
                if event.sequence <= last:
                    continue  # a duplicate
                if event.sequence > last + 1 or event.text is None:
                    break  # events are missing before it, or it has left the stream
                waits = "select 1 from held where workspace_id = ? and not is_dead limit 1"
                if self.db.execute(waits, (event.workspace_id,)).fetchone():
                    self.hold(event, attempts=0, error="")
                elif error := self.attempt(event.text):
                    self.hold(event, attempts=1, error=error)
                last, event_id = event.sequence, event.event_id
            self.db.execute("replace into positions values (?, ?, ?)", (partition, last, event_id))
        return last

    def attempt(self, text):
        """Does the work; undoes it and returns the error if it fails."""
        self.db.execute("savepoint work")
        try:
            apply(self.db, json.loads(text))
            error = None
        except sqlite3.OperationalError:
            raise  # the database has a problem, and not the event
        except Exception as fault:
            self.db.execute("rollback to work")
            error = repr(fault)[:MAX_ERROR]
        self.db.execute("release work")
        return error

    def hold(self, event, attempts, error):
        due = time.time() + RETRY_DELAYS_S[attempts - 1] if 0 < attempts <= len(RETRY_DELAYS_S) else 0
        self.db.execute("replace into held values (?, ?, ?, ?, ?, ?, ?, ?, 0)", (*event, attempts, due, error))

    def next_held(self):
        """The held event that is due first, of those that wait behind no other, with its attempts, time and error."""
        row = self.db.execute(
            "select partition, sequence, event_id, workspace_id, event, attempts, due, error from held h"
            " where not is_dead and not exists (select 1 from held earlier where earlier.workspace_id = h.workspace_id"
            " and not earlier.is_dead and earlier.sequence < h.sequence) order by due limit 1").fetchone()
        return row and (Event(*row[:5]), *row[5:])

    def retry(self, event, attempts):
        with self.transaction():
            if not self.is_held(event, attempts):
                return  # another consumer was faster
            if error := self.attempt(event.text):
                self.hold(event, attempts + 1, error)
            else:
                self.db.execute("delete from held where partition = ? and sequence = ?", event[:2])

    def bury(self, event, attempts):
        with self.transaction():
            if self.is_held(event, attempts):
                self.db.execute("update held set is_dead = 1 where partition = ? and sequence = ?", event[:2])

    def is_held(self, event, attempts):
        row = self.db.execute(
            "select 1 from held where partition = ? and sequence = ? and attempts = ? and not is_dead",
            (*event[:2], attempts)).fetchone()
        return row is not None

    def held_count(self):
        return self.db.execute("select count(*) from held").fetchone()[0]

    def replay(self):
        return self.db.execute("update held set is_dead = 0, attempts = 0, due = 0 where is_dead").rowcount


def get_events(partition, after, limit=HTTP_PAGE):
    """A page of events from the server's database, where all history is."""
    url = f"{BILLING_URL}/v1/events?partition={partition}&after_sequence={after}&limit={limit}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {BILLING_TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            items = json.load(answer)["items"]
    except urllib.error.HTTPError as error:
        if error.code == 410:
            raise Fatal(f"partition {partition} has no event {after} any more: the server's database was restored") from error
        if error.code in (408, 429) or error.code >= 500:
            raise
        raise Fatal(f"{url}: {error.code} {error.read(MAX_ERROR).decode(errors='replace')}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"{url}: {error!r}") from error
    return [Event(partition, int(item["sequence"]), item["id"], item["workspaceid"], json.dumps(item)) for item in items]


def connect():
    # Without the client's own retries: a repeated XREADGROUP would leave the entries of a lost answer pending.
    return redis.Redis.from_url(
        REDIS_URL, decode_responses=True, protocol=2, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0))


@dataclasses.dataclass
class Partition:
    number: int
    generation: str
    last: int  # the position, as last seen
    cursor: str = "0"  # own pending entries first, then ">": new ones
    claim_from: str = "0-0"
    is_behind: bool = False  # it catches up over HTTP
    since: float = 0.0  # when the position was last seen to move
    hand: dict = dataclasses.field(default_factory=dict)  # received and not acknowledged: sequence -> Event

    @property
    def key(self):
        return f"vs:{{p{self.number:02}}}:g{self.generation}"

    def take(self, entries):
        for entry_id, fields in entries:
            sequence = int(entry_id.split("-")[0])
            fields = fields or {}  # a pending entry that has left the stream has none
            self.hand[sequence] = Event(
                self.number, sequence, fields.get("event_id"), fields.get("workspace_id"), fields.get("event"))


class Consumer:
    def __init__(self):
        self.store = Store()
        self.reader = connect()  # blocks, so it is used for nothing else
        self.redis = connect()
        self.partitions = {}
        self.next_refresh = 0.0
        self.stopping = threading.Event()
        self.stopped = threading.Event()

    def run(self):
        keeper = threading.Thread(target=self.keep_own_entries, daemon=True)
        keeper.start()
        backoff_s = 0.1
        while not self.stopping.is_set():
            try:
                self.turn()
                backoff_s = 0.1
            except (redis.RedisError, OSError, sqlite3.OperationalError) as error:
                log.warning("tries again: %s", error)
                # As after a restart: what was in hand is pending, and is read again.
                self.partitions, self.next_refresh = {}, 0.0
                self.stopping.wait(backoff_s * random.uniform(0.5, 1))
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
        self.stopped.set()
        keeper.join(TIMEOUT_S)

    def turn(self):
        if time.monotonic() >= self.next_refresh:
            self.refresh()
            self.claim_abandoned()
            self.next_refresh = time.monotonic() + REFRESH_S
            if self.store.held_count() >= MAX_HELD:
                log.error("%d events have failed or wait: nothing is read until there are fewer", MAX_HELD)
        self.read()
        for partition in self.partitions.values():
            self.advance(partition)
        self.retry_held()

    def free_slots(self):
        if self.store.held_count() >= MAX_HELD:
            return 0
        return max(SLOTS - sum(len(partition.hand) for partition in self.partitions.values()), 0)

    def refresh(self):
        """Looks for new generations, and opens their streams."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for number in range(PARTITIONS):
                pipeline.get(f"vs:{{p{number:02}}}:generation")
            generations = pipeline.execute()
        for number, generation in enumerate(generations):
            known = self.partitions.get(number)
            if generation and not (known and known.generation == generation):
                self.open(number, generation)

    def open(self, number, generation):
        last, event_id = self.store.position(number)
        partition = Partition(number, generation, last, since=time.monotonic())
        try:
            self.redis.xgroup_create(partition.key, GROUP, id=f"{last}-0")
        except redis.ResponseError as error:
            if "requires the key to exist" in str(error):
                return  # no event yet
            if not str(error).startswith("BUSYGROUP"):
                raise
        # A number means another event if the server's database was restored to an earlier time.
        found = get_events(number, max(last - 1, 0), limit=1)
        if last > 0 and [event.event_id for event in found] != [event_id]:
            raise Fatal(f"event {last} of partition {number} is another one now: the server's database was restored")
        self.partitions[number] = partition

    def claim_abandoned(self):
        """Takes entries that others received and did not acknowledge in time, because they have crashed."""
        count = self.free_slots() // PARTITIONS
        for partition in self.partitions.values() if count else ():
            partition.claim_from, entries, deleted = self.redis.xautoclaim(
                partition.key, GROUP, NAME, int(IDLE_LIMIT_S * 1000), start_id=partition.claim_from, count=count)
            partition.take(entries)
            partition.take((entry_id, None) for entry_id in deleted)

    def read(self):
        # A partition with entries in hand waits for earlier events, so it is not read.
        readable = [partition for partition in self.partitions.values() if not partition.hand]
        random.shuffle(readable)
        free = self.free_slots()
        readable = readable[:free]
        wait_s = self.wait_s()
        if not readable:
            self.stopping.wait(wait_s)
            return
        streams = {partition.key: partition.cursor for partition in readable}
        block = max(int(wait_s * 1000), 1)  # 0 would be for ever
        answer = self.reader.xreadgroup(GROUP, NAME, streams, count=free // len(readable), block=block)
        entries_of = dict(answer)
        for partition in readable:
            entries = entries_of.get(partition.key, [])
            partition.take(entries)
            if partition.cursor != ">":
                partition.cursor = entries[-1][0] if entries else ">"

    def wait_s(self):
        if any(partition.is_behind for partition in self.partitions.values()):
            return 0
        if any(partition.hand for partition in self.partitions.values()):
            return GAP_POLL_S
        held = self.store.next_held()
        return min(max(held[2] - time.time(), 0), WAIT_S) if held else WAIT_S

    def advance(self, partition):
        """Deals with what is in hand as far as no event is missing, and acknowledges it."""
        if not partition.hand:
            return
        last = self.store.deal_with(partition.number, [partition.hand[number] for number in sorted(partition.hand)])
        done = [number for number in partition.hand if number <= last]
        if done:
            self.redis.xack(partition.key, GROUP, *(f"{number}-0" for number in done))
        for number in done:
            del partition.hand[number]
        if last > partition.last:
            partition.last, partition.since = last, time.monotonic()
        if not partition.hand:
            partition.is_behind = False
            return
        # Events are missing. Another consumer may be dealing with them; else they have left the stream.
        is_lost = partition.hand[min(partition.hand)].text is None
        if is_lost or time.monotonic() - partition.since > GAP_WAIT_S:
            partition.is_behind = True
        if partition.is_behind:
            events = get_events(partition.number, last)
            if not events:
                raise OSError(f"partition {partition.number}: the server has no event after {last}, but the stream has")
            self.store.deal_with(partition.number, events)

    def retry_held(self):
        for _ in range(SLOTS):
            held = self.store.next_held()
            if not held or held[2] > time.time() or self.stopping.is_set():
                return
            event, attempts, _, error = held
            if attempts <= len(RETRY_DELAYS_S):
                self.store.retry(event, attempts)
                continue
            # First the stream, then the table: after a crash between the two the letter is there twice, not never.
            self.redis.xadd(
                f"vs:{{p{event.partition:02}}}:dlq:{GROUP}",
                {"event_id": event.event_id, "workspace_id": event.workspace_id, "sequence": event.sequence,
                 "error": error, "attempts": attempts, "consumer": NAME, "event": event.text},
                maxlen=DEAD_LETTERS, approximate=True)
            self.store.bury(event, attempts)
            log.error("event %s is a dead letter after %d attempts: %s", event.event_id, attempts, error)

    def keep_own_entries(self):
        """A thread: tells Redis that this consumer still works on its entries, so that no other takes them."""
        connection = connect()
        while not self.stopped.wait(IDLE_LIMIT_S / 3):
            try:
                for partition in list(self.partitions.values()):
                    ids = [f"{number}-0" for number in list(partition.hand)]
                    if ids:
                        connection.xclaim(partition.key, GROUP, NAME, 0, ids, justid=True)
            except redis.RedisError as error:
                log.warning("cannot keep its entries: %s", error)


def main():
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {NAME} %(levelname)s %(message)s")
    if sys.argv[1:] == ["replay"]:
        print(f"{Store().replay()} dead letters are tried again")
        return
    if sys.argv[1:]:
        sys.exit(__doc__)
    if not BILLING_TOKEN:
        sys.exit("BILLING_TOKEN is not set: a token for all workspaces with the scope events:read")
    consumer = Consumer()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: consumer.stopping.set())
    try:
        consumer.run()
    except Fatal as error:
        sys.exit(f"consumer: {error}")


if __name__ == "__main__":
    main()
