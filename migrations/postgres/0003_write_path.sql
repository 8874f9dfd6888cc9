-- What a batch writes, and in what shape.

-- Whole tables are read below: the planner must be free of what the server's own statements need.
set local enable_seqscan = on;
set local enable_hashjoin = on;
set local enable_mergejoin = on;

-- A deduction mostly moves the same grant and the same feature as the one before it. What it moves is kept
-- in the workspace's row, so that it writes one row and not three; the rows of their own have what was true
-- before they became current. The views say what is true now.
alter table workspace_credits add column current_grant_id uuid;
alter table workspace_credits add column current_grant_remaining bigint;
alter table workspace_credits add column current_grant_held bigint;
alter table workspace_credits add column current_feature_code text;
alter table workspace_credits add column current_feature_used bigint;
alter table workspace_credits add column current_feature_fired boolean;
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
-- partition: a batch appends to them in one place, and not in one for each workspace.
alter table commands add column seq bigint;
alter table commands add column entry_seq bigint;
alter table commands add column usage_seq bigint;
alter table commands add column event_seq bigint;
alter table commands add column outbox_seq bigint;
alter table commands add column event_count smallint;
alter table workspace_credits add column command_seq bigint not null default 0;

alter table commands disable trigger history_is_immutable;
update commands c
set seq = n.seq, entry_seq = n.entry_seq, usage_seq = n.usage_seq, event_seq = n.event_seq, outbox_seq = n.outbox_seq,
    event_count = n.event_count
from (
    select a.workspace_id, a.command_id, row_number() over w as seq, coalesce(max(e.last) over w, 0) as entry_seq,
        coalesce(max(u.seq) over w, 0) as usage_seq, coalesce(max(o.last) over w, 0) as event_seq,
        coalesce(max(o.last_of_partition) over w, 0) as outbox_seq, coalesce(o.events, 0) as event_count
    from commands a
    left join (
        select workspace_id, command_id, max(seq) as last from credit_entries group by workspace_id, command_id
    ) e on e.workspace_id = a.workspace_id and e.command_id = a.command_id
    left join usage_logs u on u.workspace_id = a.workspace_id and u.command_id = a.command_id
    left join (
        select workspace_id, causation_id, max(workspace_seq) as last, max(seq) as last_of_partition, count(*) as events
        from event_outbox group by workspace_id, causation_id
    ) o on o.workspace_id = a.workspace_id and o.causation_id = a.command_id
    window w as (
        partition by a.workspace_id order by a.recorded_at, coalesce(o.last, 0), a.command_id rows unbounded preceding
    )
) n
where n.workspace_id = c.workspace_id and n.command_id = c.command_id;
alter table commands enable trigger history_is_immutable;
update workspace_credits c
set command_seq = n.last
from (select workspace_id, max(seq) as last from commands group by workspace_id) n
where n.workspace_id = c.workspace_id;

alter table workspace_credits alter column command_seq drop default;
alter table commands
    alter column seq set not null,
    alter column entry_seq set not null,
    alter column usage_seq set not null,
    alter column event_seq set not null,
    alter column outbox_seq set not null,
    alter column event_count set not null;
create unique index commands_by_workspace on commands (workspace_id, seq);
alter table credit_entries drop constraint credit_entries_pkey, add primary key (command_id, seq);
alter table usage_logs drop constraint usage_logs_pkey, add primary key (command_id);
alter table event_outbox drop constraint event_outbox_workspace_id_workspace_seq_key;

-- One check for each table that every batch writes to: each is made ready anew for every statement, which for
-- thirty of them took as long as writing two commands.
do $$
declare
    c record;
begin
    for c in
        select conrelid::regclass as of_table, conname from pg_constraint
        where contype = 'c' and conname <> 'never_below_the_overdraft' and conrelid in (
            'stream_partition'::regclass, 'workspace_credits'::regclass, 'credit_entries'::regclass,
            'usage_logs'::regclass, 'event_outbox'::regclass
        )
    loop
        execute format('alter table %s drop constraint %I', c.of_table, c.conname);
    end loop;
end
$$;
alter table stream_partition add constraint head_is_sound check (partition between 0 and 15 and seq >= 0);
alter table workspace_credits add constraint figures_are_sound check (
    held_credits >= 0 and debt_credits >= 0 and overdraft_limit >= 0 and used_this_month >= 0 and window_used >= 0
    and command_seq >= 0 and entry_seq >= 0 and usage_seq >= 0 and event_seq >= 0
    and num_nonnulls(current_grant_id, current_grant_remaining, current_grant_held) in (0, 3)
    and num_nonnulls(current_feature_code, current_feature_used, current_feature_fired) in (0, 3)
    and coalesce(current_grant_remaining, 1) > 0 and coalesce(current_grant_held, 0) >= 0
    and coalesce(current_feature_used, 0) >= 0
);
alter table credit_entries add constraint entry_is_sound check (
    seq >= 1 and amount > 0 and from_account <> to_account
    and (grant_id is not null) = (from_account in ('grant', 'held') or to_account in ('grant', 'held'))
);
alter table usage_logs add constraint usage_log_is_sound check (
    seq >= 1 and credits >= 0 and coalesce(quantity, 1) > 0
);
alter table event_outbox add constraint event_is_sound check (
    partition between 0 and 15 and seq >= 1 and workspace_seq >= 1
);

-- That a command names a workspace and an entry a grant of its workspace is for `verify` to check: even once
-- for all rows of a statement it was a tenth of what a batch cost.
drop trigger commands_are_of_workspaces on commands;
drop trigger entries_name_grants_of_their_workspace on credit_entries;
drop function refuse_commands_of_no_workspace();
drop function refuse_entries_of_no_grant();

-- The rows that the write statement takes: an array of one type for each table, instead of an array for
-- each column, which the server would set out again row by row. They belong to the statement and not to
-- the tables, so that a table may get another column while servers of an earlier version still write.

create type head_row as (
    partition     smallint,
    seq           bigint,
    last_event_id uuid,
    version       bigint
);

create type credits_row as (
    workspace_id            uuid,
    current_credits         bigint,
    held_credits            bigint,
    debt_credits            bigint,
    overdraft_limit         bigint,
    used_this_month         bigint,
    command_seq             bigint,
    entry_seq               bigint,
    usage_seq               bigint,
    event_seq               bigint,
    low_credit_fired        smallint,
    monthly_limit_fired     boolean,
    window_start            timestamptz,
    window_used             bigint,
    updated_at              timestamptz,
    current_grant_id        uuid,
    current_grant_remaining bigint,
    current_grant_held      bigint,
    current_feature_code    text,
    current_feature_used    bigint,
    current_feature_fired   boolean
);

create type feature_row as (
    workspace_id        uuid,
    feature_code        text,
    plan_enabled        boolean,
    plan_unit_price     bigint,
    plan_limit_amount   bigint,
    plan_limit_mode     text,
    override_enabled    boolean,
    override_unit_price bigint,
    override_limit      bigint,
    used_this_month     bigint,
    limit_fired         boolean
);

-- Of a grant only these change.
create type spent_grant_row as (
    workspace_id uuid,
    grant_id     uuid,
    remaining    bigint,
    held         bigint,
    expires_at   timestamptz,
    is_open      boolean
);

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
    seq             bigint,
    entry_seq       bigint,
    usage_seq       bigint,
    event_seq       bigint,
    outbox_seq      bigint,
    event_count     smallint
);

create type entry_row as (
    workspace_id  uuid,
    seq           bigint,
    command_id    uuid,
    from_account  text,
    to_account    text,
    grant_id      uuid,
    amount        bigint,
    balance_after bigint,
    recorded_at   timestamptz,
    effective_at  timestamptz
);

create type usage_log_row as (
    workspace_id uuid,
    seq          bigint,
    command_id   uuid,
    feature_code text,
    user_id      text,
    credits      bigint,
    quantity     bigint,
    occurred_at  timestamptz,
    recorded_at  timestamptz,
    metadata     text
);

create type event_row as (
    partition      smallint,
    seq            bigint,
    event_id       uuid,
    workspace_id   uuid,
    workspace_seq  bigint,
    event_type     text,
    schema_version smallint,
    occurred_at    timestamptz,
    correlation_id text,
    causation_id   uuid,
    traceparent    text,
    metadata       text,
    data           text
);
