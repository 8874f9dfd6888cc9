-- History is found by going from row to row: each usage log, ledger entry and event names the one before it of
-- its workspace, and the workspace's row names the last ones. Every 32nd is marked, in an index of these
-- alone, so that a page far back begins near. An index of all commands by number is gone with it: a batch wrote
-- to it in as many places as it had commands, and once it was larger than the database's memory, each was a page
-- to read, to log and to write out.

-- Whole tables are read below: the planner must be free of what the server's own statements need.
set local enable_seqscan = on;
set local enable_hashjoin = on;
set local enable_mergejoin = on;
set local enable_nestloop = off;
set local work_mem = '64MB';
set local maintenance_work_mem = '256MB';

alter table usage_logs add column previous_command_id uuid;
alter table credit_entries add column previous_command_id uuid;
alter table event_outbox add column previous_event_id uuid;
alter table workspace_credits add column last_usage_command_id uuid;
alter table workspace_credits add column last_entry_command_id uuid;
alter table workspace_credits add column last_event_id uuid;

-- Without their indexes the rows are written again in a fraction of the time.
alter table usage_logs drop constraint usage_logs_pkey;
alter table usage_logs disable trigger history_is_immutable;
update usage_logs u
set previous_command_id = p.previous
from (
    select command_id, lag(command_id) over (partition by workspace_id order by seq) as previous from usage_logs
) p
where p.command_id = u.command_id and p.previous is not null;
alter table usage_logs enable trigger history_is_immutable;
alter table usage_logs add primary key (command_id);

alter table credit_entries drop constraint credit_entries_pkey;
alter table credit_entries disable trigger history_is_immutable;
update credit_entries e
set previous_command_id = p.previous
from (
    select command_id, seq, lag(command_id) over (partition by workspace_id order by seq) as previous
    from credit_entries
) p
where p.command_id = e.command_id and p.seq = e.seq and p.previous is not null;
alter table credit_entries enable trigger history_is_immutable;
alter table credit_entries add primary key (command_id, seq);

alter table event_outbox drop constraint event_outbox_pkey;
alter table event_outbox drop constraint event_outbox_event_id_key;
alter table event_outbox disable trigger history_is_immutable;
update event_outbox o
set previous_event_id = p.previous
from (
    select event_id, lag(event_id) over (partition by workspace_id order by workspace_seq) as previous
    from event_outbox
) p
where p.event_id = o.event_id and p.previous is not null;
alter table event_outbox enable trigger history_is_immutable;
alter table event_outbox add primary key (partition, seq);
alter table event_outbox add unique (event_id);

update workspace_credits c
set last_usage_command_id = n.usage_id, last_entry_command_id = n.entry_id, last_event_id = n.event_id
from (
    select c.workspace_id, u.command_id as usage_id, e.command_id as entry_id, o.event_id
    from workspace_credits c
    left join usage_logs u on u.workspace_id = c.workspace_id and u.seq = c.usage_seq
    left join credit_entries e on e.workspace_id = c.workspace_id and e.seq = c.entry_seq
    left join event_outbox o on o.workspace_id = c.workspace_id and o.workspace_seq = c.event_seq
) n
where n.workspace_id = c.workspace_id;

create unique index usage_logs_marks on usage_logs (workspace_id, seq) where seq % 32 = 0;
create unique index credit_entries_marks on credit_entries (workspace_id, seq) where seq % 32 = 0;
create unique index event_outbox_marks on event_outbox (workspace_id, workspace_seq) where workspace_seq % 32 = 0;

drop index commands_by_workspace;
alter table commands drop column entry_seq;
alter table commands drop column usage_seq;
alter table commands drop column event_seq;
alter table commands drop column outbox_seq;
alter table commands drop column event_count;

alter type credits_row add attribute last_usage_command_id uuid;
alter type credits_row add attribute last_entry_command_id uuid;
alter type credits_row add attribute last_event_id uuid;
alter type usage_log_row add attribute previous_command_id uuid;
alter type entry_row add attribute previous_command_id uuid;
alter type event_row add attribute previous_event_id uuid;
drop type command_row;
create type command_row as (
    workspace_id    uuid,
    idempotency_key text,
    command_id      uuid,
    command_type    text,
    fingerprint     bytea,
    outcome         text,
    status          smallint,
    body            text,
    actor           text,
    correlation_id  text,
    traceparent     text,
    metadata        text,
    received_at     timestamptz,
    recorded_at     timestamptz,
    seq             bigint
);
