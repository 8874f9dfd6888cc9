"""Much history at once: deductions that SQL writes, as if the server had taken them.

The server has taken one real deduction in each workspace. Its rows are the pattern for all further ones of that
workspace: COLUMNS says which columns differ from it, and all others are copied. FOLLOW then moves the rows that are
not history, so that `visionscope verify` finds nothing wrong. Absent on purpose: history of any other command.
"""

from servers import PSQL, psql, run

HISTORY = ("commands", "usage_logs", "ledger_entries", "event_outbox")
CHUNKS = 20  # so that no transaction is huge

# A uuid v7 of the n-th deduction. `kind` tells the ids of one deduction apart.
ID = """(lpad(to_hex(floor(extract(epoch from r.at) * 1000)::bigint), 12, '0') || '7'
    || lpad(to_hex(r.n % 4096), 3, '0') || '8{kind}' || lpad(to_hex(r.n), 14, '0'))::uuid"""

# By name, in whichever of the tables a column is. t: the pattern; r: the new deduction, the k-th after the pattern;
# w: its workspace.
COLUMNS = {
    "idempotency_key": "'load-' || to_hex(r.n) || '-' || substr(md5(r.n::text), 1, 16)",
    "command_id": ID.format(kind="a"), "causation_id": ID.format(kind="a"), "event_id": ID.format(kind="b"),
    "received_at": "r.at", "recorded_at": "r.at", "occurred_at": "r.at", "effective_at": "r.at",
    "seq": "t.seq + r.k", "workspace_seq": "t.workspace_seq + r.k",
    "balance_after": "t.balance_after - r.k * t.amount",
}
OUTBOX_COLUMNS = COLUMNS | {"seq": "w.partition_seq + (r.k - 1) * w.in_partition + w.place"}

PATTERNS = """
create schema load;
create table load.commands as select * from commands where command_type = 'DeductCredits' and outcome = 'accepted';
create table load.usage_logs as select h.* from usage_logs h join load.commands using (workspace_id, recorded_at);
create table load.ledger_entries as
select h.* from ledger_entries h join load.commands using (workspace_id, recorded_at);
create table load.event_outbox as select h.* from event_outbox h join load.commands using (workspace_id, recorded_at);
create table load.workspaces as
select row_number() over (order by e.workspace_id) as number, e.workspace_id, p.seq as partition_seq,
    row_number() over (partition by e.partition_id order by e.workspace_id) as place,
    count(*) over (partition by e.partition_id) as in_partition
from load.event_outbox e
join outbox_partitions p using (partition_id);
create table load.start as
select max(recorded_at) as at, (select count(*) from load.workspaces) as workspaces from commands;
analyze load.workspaces;
"""

# The n-th deduction is the k-th of its workspace: one of every workspace, then the next of every workspace.
FILL = """
set session_replication_role = replica; -- no triggers: the patterns have passed them
set synchronous_commit = off;
set work_mem = '256MB';
insert into {table} ({names})
select {values}
from (
    select n, (n - 1) / workspaces + 1 as k, (n - 1) % workspaces + 1 as number, at + n * interval '1 microsecond' as at
    from load.start, generate_series({first}::bigint, {last}::bigint) n
) r
join load.workspaces w on w.number = r.number
join load.{table} t on t.workspace_id = w.workspace_id
order by r.n
"""

FOLLOW = """
set session_replication_role = replica;

update workspace_credits c
set current_credits = c.current_credits - {each} * u.credits, used_this_month = c.used_this_month + {each} * u.credits,
    version = c.version + {each}, ledger_seq = c.ledger_seq + {each}, usage_seq = c.usage_seq + {each},
    event_seq = c.event_seq + {each},
    updated_at = s.at + (({each} - 1) * s.workspaces + w.number) * interval '1 microsecond'
from load.workspaces w join load.usage_logs u using (workspace_id) cross join load.start s
where c.workspace_id = w.workspace_id;

update usage_counters c set used_credits = c.used_credits + {each} * u.credits
from load.usage_logs u
where c.workspace_id = u.workspace_id and c.scope = 'feature' and c.subject = u.feature_code;

update credit_grants g set remaining = g.remaining - {each} * e.amount
from load.ledger_entries e
where g.workspace_id = e.workspace_id and g.grant_id = e.grant_id;

update outbox_partitions p set seq = o.seq, last_event_id = o.event_id, version = p.version + 1
from outbox_partitions h
cross join lateral (
    select seq, event_id from event_outbox where partition_id = h.partition_id order by seq desc limit 1
) o
where h.partition_id = p.partition_id;

drop schema load cascade
"""


def fill(url, rows_each):
    """Gives every workspace that has one deduction so many more. Returns the size of the database."""
    psql(url, PATTERNS)
    counts = {psql(url, f"select count(*) from load.{table}")[0][0] for table in (*HISTORY, "workspaces")}
    assert len(counts) == 1, f"a deduction is not one row in each of {HISTORY}: {counts}"
    rows = int(counts.pop()) * rows_each
    step = -(-rows // CHUNKS) or 1
    for first in range(1, rows + 1, step):
        last = min(first + step - 1, rows)
        run(*([*PSQL, "-c", statement(url, table, first, last), url] for table in HISTORY))
    psql(url, FOLLOW.format(each=rows_each))
    psql(url, "vacuum analyze")
    psql(url, "checkpoint")
    return psql(url, "select pg_size_pretty(pg_database_size(current_database()))")[0][0]


def statement(url, table, first, last):
    own = OUTBOX_COLUMNS if table == "event_outbox" else COLUMNS
    names = [name for name, in psql(url, "select attname from pg_attribute where attnum > 0 and not attisdropped and "
                                         f"attgenerated = '' and attrelid = '{table}'::regclass order by attnum")]
    values = [own.get(name, f't."{name}"') for name in names]
    return FILL.format(table=table, names=", ".join(f'"{name}"' for name in names), values=", ".join(values),
                       first=first, last=last)
