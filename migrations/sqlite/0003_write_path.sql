-- What a batch writes, and in what shape.

-- A deduction mostly moves the same grant and the same feature as the one before it. What it moves is kept
-- in the workspace's row, so that it writes one row and not three; the rows of their own have what was true
-- before they became current. The views say what is true now.
alter table workspace_credits add column current_grant_id blob check (length(current_grant_id) = 16);
alter table workspace_credits add column current_grant_remaining integer
    check (current_grant_remaining > 0 and (current_grant_remaining is null) = (current_grant_id is null));
alter table workspace_credits add column current_grant_held integer
    check (current_grant_held >= 0 and (current_grant_held is null) = (current_grant_id is null));
alter table workspace_credits add column current_feature_code text;
alter table workspace_credits add column current_feature_used integer
    check (current_feature_used >= 0 and (current_feature_used is null) = (current_feature_code is null));
alter table workspace_credits add column current_feature_fired integer
    check (current_feature_fired in (0, 1) and (current_feature_fired is null) = (current_feature_code is null));

create view workspace_features_now as
select f.workspace_id, f.feature_code, f.plan_enabled, f.plan_unit_price, f.plan_limit_amount,
    f.plan_limit_mode, f.override_enabled, f.override_unit_price, f.override_limit,
    case when c.current_feature_code = f.feature_code then c.current_feature_used else f.used_this_month end
        as used_this_month,
    case when c.current_feature_code = f.feature_code then c.current_feature_fired else f.limit_fired end
        as limit_fired
from workspace_features f
join workspace_credits c on c.workspace_id = f.workspace_id;

create view credit_grants_now as
select g.workspace_id, g.grant_id, g.source, g.amount,
    case when c.current_grant_id = g.grant_id then c.current_grant_remaining else g.remaining end as remaining,
    case when c.current_grant_id = g.grant_id then c.current_grant_held else g.held end as held,
    g.priority, g.effective_at, g.expires_at, g.feature_scope, g.payment_reference,
    g.amount_minor, g.currency, g.is_open
from credit_grants g
join workspace_credits c on c.workspace_id = g.workspace_id;

-- Of all history only commands are found by their workspace, and each says which rows are its own. Ledger
-- entries and usage logs are kept by their command, whose id grows with time, and events by their
-- partition: a batch appends to them in one place, and not in one for each workspace. So nothing finds
-- them by their workspace or grant, and a reference to those would scan them: `verify` checks it.
alter table commands rename to commands_before;
alter table credit_entries rename to credit_entries_before;
alter table usage_logs rename to usage_logs_before;
alter table event_outbox rename to event_outbox_before;
drop view event_outbox_published;

create table commands (
    workspace_id    blob    not null references workspaces,
    idempotency_key text    not null,
    command_id      blob    not null check (length(command_id) = 16),
    command_type    text    not null,
    fingerprint     blob    not null check (length(fingerprint) = 32),
    outcome         text    not null,
    status          integer not null,
    body            text    not null,
    actor           text    not null,
    correlation_id  text    not null,
    traceparent     text,
    metadata        text,
    received_at     integer not null,
    recorded_at     integer not null,
    seq             integer not null,
    entry_seq       integer not null,
    usage_seq       integer not null,
    event_seq       integer not null,
    outbox_seq      integer not null,
    event_count     integer not null,
    primary key (workspace_id, idempotency_key)
) strict;

-- Numbers apart from texts, so that little is sorted in memory.
create temp table numbered as
select a.rowid as place, row_number() over w as seq, coalesce(max(e.last) over w, 0) as entry_seq,
    coalesce(max(u.seq) over w, 0) as usage_seq, coalesce(max(o.last) over w, 0) as event_seq,
    coalesce(max(o.last_of_partition) over w, 0) as outbox_seq, coalesce(o.events, 0) as event_count
from commands_before a
left join (
    select workspace_id, command_id, max(seq) as last from credit_entries_before group by workspace_id, command_id
) e on e.workspace_id = a.workspace_id and e.command_id = a.command_id
left join usage_logs_before u on u.workspace_id = a.workspace_id and u.command_id = a.command_id
left join (
    select workspace_id, causation_id, max(workspace_seq) as last, max(seq) as last_of_partition, count(*) as events
    from event_outbox_before group by workspace_id, causation_id
) o on o.workspace_id = a.workspace_id and o.causation_id = a.command_id
window w as (
    partition by a.workspace_id order by a.recorded_at, coalesce(o.last, 0), a.command_id rows unbounded preceding
);
create unique index temp.numbered_by_place on numbered (place);
insert into commands
select a.*, n.seq, n.entry_seq, n.usage_seq, n.event_seq, n.outbox_seq, n.event_count
from commands_before a
cross join temp.numbered n on n.place = a.rowid
order by a.rowid;
drop table temp.numbered;
create unique index commands_by_workspace on commands (workspace_id, seq);

alter table workspace_credits add column command_seq integer not null default 0 check (command_seq >= 0);
update workspace_credits
set command_seq = n.last
from (select workspace_id, max(seq) as last from commands group by workspace_id) n
where n.workspace_id = workspace_credits.workspace_id;

create table credit_entries (
    workspace_id  blob    not null,
    seq           integer not null check (seq >= 1),
    command_id    blob    not null check (length(command_id) = 16),
    from_account  text    not null,
    to_account    text    not null,
    grant_id      blob,
    amount        integer not null check (amount > 0),
    balance_after integer not null,
    recorded_at   integer not null,
    effective_at  integer not null,
    primary key (command_id, seq),
    check (from_account <> to_account),
    check ((grant_id is not null) = (from_account in ('grant', 'held') or to_account in ('grant', 'held')))
) strict, without rowid;
insert into credit_entries select * from credit_entries_before;

create table usage_logs (
    workspace_id blob    not null,
    seq          integer not null check (seq >= 1),
    command_id   blob    primary key not null check (length(command_id) = 16),
    feature_code text    not null,
    user_id      text,
    credits      integer not null check (credits >= 0),
    quantity     integer check (quantity > 0),
    occurred_at  integer not null,
    recorded_at  integer not null,
    metadata     text
) strict, without rowid;
insert into usage_logs select * from usage_logs_before;

create table event_outbox (
    partition      integer not null check (partition between 0 and 15),
    seq            integer not null check (seq >= 1),
    event_id       blob    not null unique check (length(event_id) = 16),
    workspace_id   blob    not null,
    workspace_seq  integer not null check (workspace_seq >= 1),
    event_type     text    not null,
    schema_version integer not null,
    occurred_at    integer not null,
    correlation_id text    not null,
    causation_id   blob    not null check (length(causation_id) = 16),
    traceparent    text,
    metadata       text,
    data           text    not null,
    primary key (partition, seq)
) strict;
insert into event_outbox select * from event_outbox_before order by rowid;

drop table commands_before;
drop table credit_entries_before;
drop table usage_logs_before;
drop table event_outbox_before;

create view event_outbox_published as
select
    e.partition, e.seq, e.event_id, e.workspace_id, e.workspace_seq, e.event_type, e.schema_version, e.occurred_at,
    e.correlation_id, e.causation_id, e.traceparent, e.metadata, e.data,
    e.published_at is not null as published, e.published_at
from (
    select o.*, (
        select s.published_at from stream_batch s
        where s.partition = o.partition and s.generation = l.generation and s.seq_to >= o.seq
        order by s.seq_to limit 1
    ) as published_at
    from event_outbox o
    join stream_lease l on l.partition = o.partition
) e;

create trigger commands_refuse_update before update on commands
begin select raise(abort, 'history is immutable: update on commands'); end;
create trigger commands_refuse_delete before delete on commands
begin select raise(abort, 'history is immutable: delete on commands'); end;
create trigger credit_entries_refuse_update before update on credit_entries
begin select raise(abort, 'history is immutable: update on credit_entries'); end;
create trigger credit_entries_refuse_delete before delete on credit_entries
begin select raise(abort, 'history is immutable: delete on credit_entries'); end;
create trigger usage_logs_refuse_update before update on usage_logs
begin select raise(abort, 'history is immutable: update on usage_logs'); end;
create trigger usage_logs_refuse_delete before delete on usage_logs
begin select raise(abort, 'history is immutable: delete on usage_logs'); end;
create trigger event_outbox_refuse_update before update on event_outbox
begin select raise(abort, 'history is immutable: update on event_outbox'); end;
create trigger event_outbox_refuse_delete before delete on event_outbox
begin select raise(abort, 'history is immutable: delete on event_outbox'); end;
