"""Much history at once: deductions written by SQL, as if the server had taken them.

One real deduction is the pattern: its command, usage log, entry and event are multiplied for every
workspace, each row with its own ids and numbers (the one place below that names columns; any other column
is copied). Balances, grants, heads and published batches are moved along, so that `visionscope verify`
holds on the result. Constraints and indexes of the four tables are put aside while they are filled, and
are back, the very same, before anything is measured.

Deliberately absent: changing rows of history, and history of any other kind of command.
"""

import time

from postgres import Session
from processes import Failure

HISTORY = ("commands", "usage_logs", "credit_entries", "event_outbox")
LOAD_TIMEOUT_S = 3600
CHUNKS = 20  # for progress, and so that no transaction is huge
BATCH_EVENTS = 500  # of one published batch

# A time-ordered id (UUIDv7) of deduction `r.n`: `kind` tells the ids of one deduction apart.
ID = """(lpad(to_hex(floor(extract(epoch from {at}) * 1000)::bigint), 12, '0') || '7' || lpad(to_hex({n} % 4096), 3, '0')
    || '8{kind}' || lpad(to_hex({n}), 14, '0'))::uuid"""
COMMAND_ID, EVENT_ID = (ID.format(kind=kind, n="r.n", at="r.at") for kind in "ab")
# The ids of the deduction of the same workspace before it.
BEFORE = "case when r.k = 1 then w.{last} else {id} end"
COMMAND_BEFORE, EVENT_BEFORE = (ID.format(kind=kind, n="r.n_before", at="r.at_before") for kind in "ab")

# w: the workspace as it was (see WORKSPACES); r: the deduction, the k-th of its workspace; t: the pattern.
COLUMNS = {
    "commands": {
        "workspace_id": "w.workspace_id",
        "idempotency_key": "'load-' || to_hex(r.n) || '-' || substr(md5(r.n::text), 1, 16)",
        "command_id": COMMAND_ID, "received_at": "r.at", "recorded_at": "r.at",
        "seq": "w.command_seq + r.k",
    },
    "usage_logs": {
        "workspace_id": "w.workspace_id", "seq": "w.usage_seq + r.k", "command_id": COMMAND_ID, "occurred_at": "r.at",
        "recorded_at": "r.at", "previous_command_id": BEFORE.format(last="last_usage_command_id", id=COMMAND_BEFORE),
    },
    "credit_entries": {
        "workspace_id": "w.workspace_id", "seq": "w.entry_seq + r.k", "command_id": COMMAND_ID, "grant_id": "w.grant_id",
        "balance_after": "w.current_credits - r.k * t.amount", "recorded_at": "r.at", "effective_at": "r.at",
        "previous_command_id": BEFORE.format(last="last_entry_command_id", id=COMMAND_BEFORE),
    },
    "event_outbox": {
        "partition": "w.partition", "event_id": EVENT_ID,
        "seq": "w.partition_seq + (r.k - 1) * w.in_partition + w.place",
        "workspace_id": "w.workspace_id", "workspace_seq": "w.event_seq + r.k", "occurred_at": "r.at",
        "causation_id": COMMAND_ID, "previous_event_id": BEFORE.format(last="last_event_id", id=EVENT_BEFORE),
    },
}

# The workspaces to fill: where each stands, and its place among those of its partition.
WORKSPACES = """
create schema load;
create table load.workspaces as
select row_number() over (order by w.workspace_id) as number, w.workspace_id, w.partition, g.grant_id,
    p.seq as partition_seq, c.current_credits, c.command_seq, c.entry_seq, c.usage_seq, c.event_seq,
    c.last_usage_command_id, c.last_entry_command_id, c.last_event_id,
    row_number() over (partition by w.partition order by w.workspace_id) as place,
    count(*) over (partition by w.partition) as in_partition
from (select * from workspaces order by workspace_id limit {workspaces}) w
join workspace_credits c using (workspace_id)
join credit_grants g on g.workspace_id = w.workspace_id and g.source = 'allowance' and g.is_open
join stream_partition p on p.partition = w.partition;
analyze load.workspaces;
create table load.begin as select max(recorded_at) as at from commands;
"""

PATTERNS = """
create table load.commands as
select * from commands where command_type = 'DeductCredits' and outcome = 'accepted' limit 1;
create table load.usage_logs as
select h.* from usage_logs h join load.commands c using (workspace_id, command_id);
create table load.credit_entries as
select h.* from credit_entries h join load.commands c using (workspace_id, command_id);
create table load.event_outbox as
select h.* from event_outbox h join load.commands c on c.workspace_id = h.workspace_id and c.command_id = h.causation_id;
"""

FILL = """
insert into {table} ({names})
select {values}
from (
    select n, (n - 1) / {workspaces} + 1 as k, (n - 1) % {workspaces} + 1 as number,
        (select at from load.begin) + n * interval '1 microsecond' as at, n - {workspaces} as n_before,
        (select at from load.begin) + (n - {workspaces}) * interval '1 microsecond' as at_before
    from generate_series({first}::bigint, {last}::bigint) n
) r
join load.workspaces w on w.number = r.number
cross join load.{table} t"""

MOVE_ALONG = """
with moved as (
    select w.workspace_id, w.grant_id, {each} as rows, {each} * u.credits as credits, u.feature_code,
        {command_id} as command_id, {event_id} as event_id
    from (
        select w.*, n, (select at from load.begin) + n * interval '1 microsecond' as at
        from load.workspaces w cross join lateral (select ({each} - 1) * {workspaces} + w.number as n) l
    ) r
    join load.workspaces w on w.number = r.number
    cross join load.usage_logs u
),
credits as (
    update workspace_credits c
    set current_credits = c.current_credits - m.credits, used_this_month = c.used_this_month + m.credits,
        command_seq = c.command_seq + m.rows, entry_seq = c.entry_seq + m.rows, usage_seq = c.usage_seq + m.rows,
        event_seq = c.event_seq + m.rows, last_usage_command_id = m.command_id, last_entry_command_id = m.command_id,
        last_event_id = m.event_id,
        current_grant_remaining = c.current_grant_remaining
            - case when c.current_grant_id = m.grant_id then m.credits else 0 end,
        current_feature_used = c.current_feature_used
            + case when c.current_feature_code = m.feature_code then m.credits else 0 end
    from moved m where m.workspace_id = c.workspace_id
), features as (
    update workspace_features f set used_this_month = f.used_this_month + m.credits
    from moved m, workspace_credits c
    where m.workspace_id = f.workspace_id and m.feature_code = f.feature_code
        and c.workspace_id = f.workspace_id and c.current_feature_code is distinct from f.feature_code
)
update credit_grants g set remaining = g.remaining - m.credits
from moved m, workspace_credits c
where m.workspace_id = g.workspace_id and m.grant_id = g.grant_id
    and c.workspace_id = g.workspace_id and c.current_grant_id is distinct from g.grant_id;

update stream_partition p set seq = o.seq, last_event_id = o.event_id, version = p.version + 1
from stream_partition h
cross join lateral (select seq, event_id from event_outbox where partition = h.partition order by seq desc limit 1) o
where h.partition = p.partition;

insert into stream_batch (partition, generation, seq_from, seq_to)
select l.partition, l.generation, f, least(f + {batch} - 1, p.seq)
from stream_lease l
join stream_partition p on p.partition = l.partition
cross join lateral (
    select coalesce(max(b.seq_to), 0) as seq from stream_batch b
    where b.partition = l.partition and b.generation = l.generation
) published
cross join lateral generate_series(published.seq + 1, p.seq, {batch}) f;

drop schema load cascade;
"""

DEFINITIONS = """
select c.conrelid::regclass, 'constraint', quote_ident(c.conname), pg_get_constraintdef(c.oid)
from pg_constraint c
where c.conrelid::regclass::text in ({tables}) and c.contype in ('p', 'u', 'f')
union all
select i.indrelid::regclass, 'index', i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
from pg_index i
where i.indrelid::regclass::text in ({tables})
    and not exists (select from pg_constraint c where c.conindid = i.indexrelid)
order by 1, 2, 3
"""


def fill(url, workspaces, rows_each):
    """Gives the first workspaces so many deductions each, after those that they have."""
    begin = time.monotonic()
    say = lambda what: print(f"  {time.monotonic() - begin:5.0f} s  {what}", flush=True)
    session = Session(url)
    try:
        # Of this session alone. The measured ones have the server's defaults.
        session.rows("set synchronous_commit = off; set maintenance_work_mem = '512MB'; set work_mem = '256MB'")
        session.rows(WORKSPACES.format(workspaces=workspaces) + PATTERNS)
        if int(session.value("select count(*) from load.workspaces")) != workspaces:
            raise Failure(f"there are no {workspaces} workspaces with an open allowance")
        put_aside = definitions(session)
        for table, kind, name, _ in sorted(put_aside, key=lambda row: row[3].startswith("PRIMARY KEY")):
            session.rows(f"alter table {table} drop constraint {name}" if kind == "constraint" else f"drop index {name}")
        fill_tables(url, session, workspaces, rows_each, say)
        # Primary keys first: the foreign keys look things up with them.
        for table, kind, name, definition in sorted(put_aside, key=lambda row: "FOREIGN KEY" in row[3]):
            statement = f"alter table {table} add constraint {name} {definition}" if kind == "constraint" else definition
            session.rows(statement, LOAD_TIMEOUT_S)
            say(f"{kind} {name} of {table} is back")
        if definitions(session) != put_aside:
            raise Failure("the constraints and indexes are not what they were")
        session.rows(MOVE_ALONG.format(each=rows_each, workspaces=workspaces, batch=BATCH_EVENTS, command_id=COMMAND_ID,
                                        event_id=EVENT_ID), LOAD_TIMEOUT_S)
        say("balances, grants, heads and batches follow")
        session.rows("vacuum analyze", LOAD_TIMEOUT_S)
        session.rows("checkpoint", LOAD_TIMEOUT_S)
        size = session.value("select pg_size_pretty(pg_database_size(current_database()))")
        say(f"vacuumed, {size} on disk")
        return size
    finally:
        session.close()


def definitions(session):
    tables = ", ".join(f"'{table}'" for table in HISTORY)
    return session.rows(DEFINITIONS.format(tables=tables))


def fill_tables(url, session, workspaces, rows_each, say):
    """All tables a chunk at a time, two tables at once."""
    other = Session(url)
    try:
        other.rows("set synchronous_commit = off; set work_mem = '256MB'")
        rows = workspaces * rows_each
        step = -(-rows // CHUNKS)
        for first in range(1, rows + 1, step):
            last = min(first + step - 1, rows)
            for pair in (HISTORY[:2], HISTORY[2:]):
                statements = [statement(session, table, workspaces, first, last) for table in pair]
                other.begin(statements[1])
                session.rows(statements[0], LOAD_TIMEOUT_S)
                other.end(LOAD_TIMEOUT_S)
            say(f"{last:,} of {rows:,} rows in each of {', '.join(HISTORY)}")
    finally:
        other.close()


def statement(session, table, workspaces, first, last):
    """Columns without an expression of their own are the pattern's."""
    names = [row[0] for row in session.rows(
        "select quote_ident(attname) from pg_attribute where attnum > 0 and not attisdropped "
        f"and attgenerated = '' and attrelid = '{table}'::regclass order by attnum"
    )]
    own = COLUMNS[table]
    values = [own.get(name, f"t.{name}") for name in names]
    return FILL.format(table=table, names=", ".join(names), values=", ".join(values), workspaces=workspaces,
                       first=first, last=last)
