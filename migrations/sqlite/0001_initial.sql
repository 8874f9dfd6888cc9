-- The whole of the first schema: the twin of migrations/postgres/0001_initial.sql, table by table.
-- Ids are 16-byte blobs, instants are microseconds since 1970, amounts are micro-credits, booleans
-- are 0 or 1. Every table is STRICT, so a value of another type is refused. History is insert-only:
-- see the triggers at the end. Indexes on the write path are few on purpose.
--
-- WITHOUT ROWID keeps a row in the tree of its primary key: one tree to write instead of two, and
-- the rows of a workspace lie together. Tables with wide rows (definitions, stored answers, events)
-- stay rowid tables: their rows are appended, and only a narrow key goes to a random place.

create table plan_versions (
    plan_code   text    not null,
    version     integer not null check (version >= 1),
    definition  text    not null check (json_valid(definition)),
    primary key (plan_code, version)
) strict;

create table plans (
    plan_code      text    primary key not null,
    latest_version integer not null,
    foreign key (plan_code, latest_version) references plan_versions (plan_code, version)
) strict, without rowid;

create table plan_features (
    plan_code    text    not null,
    version      integer not null,
    feature_code text    not null,
    enabled      integer not null check (enabled in (0, 1)),
    unit_price   integer check (unit_price >= 0),
    limit_amount integer check (limit_amount >= 0),
    limit_mode   text    check (limit_mode in ('hard', 'soft')),
    primary key (plan_code, version, feature_code),
    foreign key (plan_code, version) references plan_versions (plan_code, version),
    check ((limit_amount is null) = (limit_mode is null))
) strict, without rowid;

create table workspaces (
    workspace_id             blob    primary key not null check (length(workspace_id) = 16),
    partition                integer not null check (partition between 0 and 15),
    name                     text    not null,
    time_zone                text    not null,
    monthly_limit_override   integer check (monthly_limit_override >= 0),
    overdraft_limit_override integer check (overdraft_limit_override >= 0),
    created_at               integer not null
) strict, without rowid;

create table workspace_credits (
    workspace_id        blob    primary key not null references workspaces,
    current_credits     integer not null,
    held_credits        integer not null check (held_credits >= 0),
    debt_credits        integer not null check (debt_credits >= 0),
    overdraft_limit     integer not null check (overdraft_limit >= 0),
    used_this_month     integer not null check (used_this_month >= 0),
    entry_seq           integer not null check (entry_seq >= 0),
    usage_seq           integer not null check (usage_seq >= 0),
    event_seq           integer not null check (event_seq >= 0),
    low_credit_fired    integer not null check (low_credit_fired between -32768 and 32767),
    monthly_limit_fired integer not null check (monthly_limit_fired in (0, 1)),
    window_start        integer not null,
    window_used         integer not null check (window_used >= 0),
    updated_at          integer not null,
    constraint never_below_the_overdraft check (debt_credits <= overdraft_limit and current_credits >= -overdraft_limit)
) strict, without rowid;

create table subscriptions (
    workspace_id         blob    primary key not null references workspaces,
    subscription_id      blob    not null check (length(subscription_id) = 16),
    plan_code            text    not null,
    plan_version         integer not null,
    status               text    not null check (status in ('active', 'canceled')),
    anchor               integer not null,
    period_offset_months integer not null check (period_offset_months >= 0),
    period_months        integer not null check (period_months >= 1),
    period_start         integer not null,
    period_end           integer not null check (period_end > period_start),
    version              integer not null check (version >= 1),
    pending_kind         text    check (pending_kind in ('change', 'cancel')),
    pending_plan_code    text,
    pending_plan_version integer,
    pending_reason       text,
    canceled_at          integer,
    updated_at           integer not null,
    unique (workspace_id, subscription_id),
    foreign key (plan_code, plan_version) references plan_versions (plan_code, version),
    foreign key (pending_plan_code, pending_plan_version) references plan_versions (plan_code, version),
    check ((status = 'canceled') = (canceled_at is not null)),
    check ((pending_kind is 'change') = (pending_plan_code is not null and pending_plan_version is not null))
) strict, without rowid;

create index subscriptions_due on subscriptions (period_end) where status = 'active';

create table workspace_features (
    workspace_id        blob    not null references workspaces,
    feature_code        text    not null,
    plan_enabled        integer not null check (plan_enabled in (0, 1)),
    plan_unit_price     integer check (plan_unit_price >= 0),
    plan_limit_amount   integer check (plan_limit_amount >= 0),
    plan_limit_mode     text    check (plan_limit_mode in ('hard', 'soft')),
    override_enabled    integer check (override_enabled in (0, 1)),
    override_unit_price integer check (override_unit_price >= 0),
    override_limit      integer check (override_limit >= 0),
    used_this_month     integer not null check (used_this_month >= 0),
    limit_fired         integer not null check (limit_fired in (0, 1)),
    primary key (workspace_id, feature_code),
    check ((plan_limit_amount is null) = (plan_limit_mode is null))
) strict, without rowid;

create table credit_grants (
    workspace_id      blob    not null references workspaces,
    grant_id          blob    not null check (length(grant_id) = 16),
    source            text    not null check (source in ('allowance', 'rollover', 'purchase', 'promotion', 'adjustment')),
    amount            integer not null check (amount > 0),
    remaining         integer not null check (remaining >= 0),
    held              integer not null check (held >= 0),
    priority          integer not null check (priority between 0 and 100),
    effective_at      integer not null,
    expires_at        integer,
    feature_scope     text,
    payment_reference text,
    amount_minor      integer check (amount_minor >= 0),
    currency          text    check (currency glob '[A-Z][A-Z][A-Z]'),
    -- Kept by the writer beside remaining and held, as on PostgreSQL.
    is_open           integer not null check (is_open in (0, 1)),
    primary key (workspace_id, grant_id),
    check (remaining + held <= amount),
    check (is_open = (remaining + held > 0)),
    check ((amount_minor is null) = (currency is null))
) strict, without rowid;

create index credit_grants_open on credit_grants (workspace_id) where is_open = 1;
create index credit_grants_expiring on credit_grants (expires_at)
    where is_open = 1 and expires_at is not null and source not in ('allowance', 'rollover');
create unique index credit_grants_one_per_payment on credit_grants (workspace_id, payment_reference)
    where payment_reference is not null and source = 'purchase';

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
    primary key (workspace_id, idempotency_key)
) strict;

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
    primary key (workspace_id, seq),
    foreign key (workspace_id, grant_id) references credit_grants (workspace_id, grant_id),
    check (from_account <> to_account),
    check ((grant_id is not null) = (from_account in ('grant', 'held') or to_account in ('grant', 'held')))
) strict, without rowid;

-- The reference to workspaces, here and in event_outbox, is not on PostgreSQL, where it costs a lock per
-- row. Here it is one look into a tree that the batch has just read.
create table usage_logs (
    workspace_id blob    not null references workspaces,
    seq          integer not null check (seq >= 1),
    command_id   blob    not null check (length(command_id) = 16),
    feature_code text    not null,
    user_id      text,
    credits      integer not null check (credits >= 0),
    quantity     integer check (quantity > 0),
    occurred_at  integer not null,
    recorded_at  integer not null,
    metadata     text,
    primary key (workspace_id, seq)
) strict, without rowid;

create table credit_resets (
    workspace_id    blob    not null,
    subscription_id blob    not null,
    period_start    integer not null,
    period_end      integer not null,
    usage_seq       integer not null check (usage_seq >= 0),
    command_id      blob    not null check (length(command_id) = 16),
    recorded_at     integer not null,
    primary key (workspace_id, subscription_id, period_start),
    foreign key (workspace_id, subscription_id) references subscriptions (workspace_id, subscription_id)
) strict, without rowid;

-- The writers' side of a partition. SQLite has one writer at a time, so nothing is locked here; the
-- version still tells whether a cached snapshot is current.
create table stream_partition (
    partition     integer primary key not null check (partition between 0 and 15),
    seq           integer not null check (seq >= 0),
    last_event_id blob,
    version       integer not null
) strict;

-- The publishers' side of a partition.
create table stream_lease (
    partition    integer primary key not null references stream_partition,
    owner        text,
    epoch        integer not null,
    leased_until integer not null,
    generation   integer not null check (generation >= 1),
    diverged_seq integer
) strict;

with recursive numbers (n) as (select 0 union all select n + 1 from numbers where n < 15)
insert into stream_partition (partition, seq, version) select n, 0, 0 from numbers;
insert into stream_lease (partition, epoch, leased_until, generation) select partition, 0, 0, 1 from stream_partition;

create table event_outbox (
    partition      integer not null check (partition between 0 and 15),
    seq            integer not null check (seq >= 1),
    event_id       blob    not null unique check (length(event_id) = 16),
    workspace_id   blob    not null references workspaces,
    workspace_seq  integer not null check (workspace_seq >= 1),
    event_type     text    not null,
    schema_version integer not null,
    occurred_at    integer not null,
    correlation_id text    not null,
    causation_id   blob    not null check (length(causation_id) = 16),
    traceparent    text,
    metadata       text,
    data           text    not null,
    primary key (partition, seq),
    unique (workspace_id, workspace_seq)
) strict;

-- What was published, a row per batch: the outbox itself is never updated.
create table stream_batch (
    partition    integer not null check (partition between 0 and 15),
    generation   integer not null,
    seq_from     integer not null check (seq_from >= 1),
    seq_to       integer not null,
    published_at integer not null default (cast(round(unixepoch('subsec') * 1000) as integer) * 1000),
    primary key (partition, generation, seq_to),
    check (seq_to >= seq_from)
) strict, without rowid;

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

create trigger plan_versions_refuse_update before update on plan_versions
begin select raise(abort, 'history is immutable: update on plan_versions'); end;
create trigger plan_versions_refuse_delete before delete on plan_versions
begin select raise(abort, 'history is immutable: delete on plan_versions'); end;
create trigger plan_features_refuse_update before update on plan_features
begin select raise(abort, 'history is immutable: update on plan_features'); end;
create trigger plan_features_refuse_delete before delete on plan_features
begin select raise(abort, 'history is immutable: delete on plan_features'); end;
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
create trigger credit_resets_refuse_update before update on credit_resets
begin select raise(abort, 'history is immutable: update on credit_resets'); end;
create trigger credit_resets_refuse_delete before delete on credit_resets
begin select raise(abort, 'history is immutable: delete on credit_resets'); end;
create trigger event_outbox_refuse_update before update on event_outbox
begin select raise(abort, 'history is immutable: update on event_outbox'); end;
create trigger event_outbox_refuse_delete before delete on event_outbox
begin select raise(abort, 'history is immutable: delete on event_outbox'); end;
create trigger stream_batch_refuse_update before update on stream_batch
begin select raise(abort, 'history is immutable: update on stream_batch'); end;
create trigger stream_batch_refuse_delete before delete on stream_batch
begin select raise(abort, 'history is immutable: delete on stream_batch'); end;
