"""How far the publisher is behind: read from the database, four times a second, while a load runs.

An event counts as published when its batch is recorded, which is after Redis has it; so what is seen
here is an upper bound. Deliberately absent: the server's own metric of it, which is refreshed too
rarely for a run of seconds.
"""

import threading
import time

from postgres import Session
from processes import await_that

EVERY_S = 0.25
DRAIN_TIMEOUT_S = 120
DRAIN_EVERY_S = 0.02

STATUS = """
select coalesce(sum(p.seq - b.seq_to), 0),
    coalesce(max(extract(epoch from clock_timestamp() - o.occurred_at)) * 1000, 0)
from stream_lease l
join stream_partition p on p.partition = l.partition
cross join lateral (
    select coalesce(max(s.seq_to), 0) as seq_to from stream_batch s
    where s.partition = l.partition and s.generation = l.generation
) b
left join event_outbox o on o.partition = p.partition and o.seq = b.seq_to + 1"""


class Lag:
    """Samples of one run: (seconds since its begin, events that wait, age of the oldest in ms)."""

    def __init__(self, url):
        self.session = Session(url)
        self.samples = []
        self.failure = None
        self.ended = threading.Event()
        self.thread = None

    def now(self):
        events, age_ms = self.session.rows(STATUS)[0]
        return int(events), float(age_ms)

    def watch(self):
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def _sample(self):
        begin = time.monotonic()
        try:
            while not self.ended.wait(EVERY_S):
                self.samples.append((time.monotonic() - begin, *self.now()))
        except Exception as failure:  # told by end(), in the thread that waits for it
            self.failure = failure

    def end(self):
        """Ends the watch; the session can be asked again afterwards."""
        self.ended.set()
        self.thread.join()
        self.thread = None
        if self.failure:
            raise self.failure

    def drained_within_ms(self):
        """Waits until everything is published, and says how long that took."""
        begin = time.monotonic()
        await_that("every event is published", lambda: self.now()[0] == 0, DRAIN_TIMEOUT_S, DRAIN_EVERY_S)
        return (time.monotonic() - begin) * 1000

    def summary(self):
        middle = len(self.samples) // 2
        first, second = self.samples[:middle], self.samples[middle:]
        most = lambda samples, field: max((sample[field] for sample in samples), default=0)
        return {
            "max_events": most(self.samples, 1), "max_ms": most(self.samples, 2),
            "first_half_max_ms": most(first, 2), "second_half_max_ms": most(second, 2),
        }

    def close(self):
        if self.thread:  # the load failed
            self.ended.set()
            self.thread.join()
        self.session.close()
