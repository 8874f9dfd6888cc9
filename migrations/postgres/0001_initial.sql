-- The whole of the first schema. Amounts are micro-credits (bigint). History is insert-only: see the
-- triggers at the end. Indexes on the write path are few on purpose: each costs every deduction.

create table plan_versions (
    plan_code   text    not null,
    version     integer not null check (version >= 1),
    definition  jsonb   not null,
    primary key (plan_code, version)
);

create table plans (
    plan_code      text    primary key,
    latest_version integer not null,
    foreign key (plan_code, latest_version) references plan_versions (plan_code, version)
);

create table plan_features (
    plan_code    text    not null,
    version      integer not null,
    feature_code text    not null,
    enabled      boolean not null,
    unit_price   bigint  check (unit_price >= 0),
    limit_amount bigint  check (limit_amount >= 0),
    limit_mode   text    check (limit_mode in ('hard', 'soft')),
    primary key (plan_code, version, feature_code),
    foreign key (plan_code, version) references plan_versions (plan_code, version),
    check ((limit_amount is null) = (limit_mode is null))
);

create table workspaces (
    workspace_id             uuid        primary key,
    partition                smallint    not null check (partition between 0 and 15),
    name                     text        not null,
    time_zone                text        not null,
    monthly_limit_override   bigint      check (monthly_limit_override >= 0),
    overdraft_limit_override bigint      check (overdraft_limit_override >= 0),
    created_at               timestamptz not null
);

create table workspace_credits (
    workspace_id        uuid        primary key references workspaces,
    current_credits     bigint      not null,
    held_credits        bigint      not null check (held_credits >= 0),
    debt_credits        bigint      not null check (debt_credits >= 0),
    overdraft_limit     bigint      not null check (overdraft_limit >= 0),
    used_this_month     bigint      not null check (used_this_month >= 0),
    entry_seq           bigint      not null check (entry_seq >= 0),
    usage_seq           bigint      not null check (usage_seq >= 0),
    event_seq           bigint      not null check (event_seq >= 0),
    low_credit_fired    smallint    not null,
    monthly_limit_fired boolean     not null,
    window_start        timestamptz not null,
    window_used         bigint      not null check (window_used >= 0),
    updated_at          timestamptz not null,
    constraint never_below_the_overdraft check (debt_credits <= overdraft_limit and current_credits >= -overdraft_limit)
) with (fillfactor = 50);

create table subscriptions (
    workspace_id         uuid        primary key references workspaces,
    subscription_id      uuid        not null,
    plan_code            text        not null,
    plan_version         integer     not null,
    status               text        not null check (status in ('active', 'canceled')),
    anchor               timestamptz not null,
    period_offset_months integer     not null check (period_offset_months >= 0),
    period_months        integer     not null check (period_months >= 1),
    period_start         timestamptz not null,
    period_end           timestamptz not null check (period_end > period_start),
    version              bigint      not null check (version >= 1),
    pending_kind         text        check (pending_kind in ('change', 'cancel')),
    pending_plan_code    text,
    pending_plan_version integer,
    pending_reason       text,
    canceled_at          timestamptz,
    updated_at           timestamptz not null,
    unique (workspace_id, subscription_id),
    foreign key (plan_code, plan_version) references plan_versions (plan_code, version),
    foreign key (pending_plan_code, pending_plan_version) references plan_versions (plan_code, version),
    check ((status = 'canceled') = (canceled_at is not null)),
    check ((pending_kind is not distinct from 'change') = (pending_plan_code is not null and pending_plan_version is not null))
);

create index subscriptions_due on subscriptions (period_end) where status = 'active';

create table workspace_features (
    workspace_id        uuid    not null references workspaces,
    feature_code        text    not null,
    plan_enabled        boolean not null,
    plan_unit_price     bigint  check (plan_unit_price >= 0),
    plan_limit_amount   bigint  check (plan_limit_amount >= 0),
    plan_limit_mode     text    check (plan_limit_mode in ('hard', 'soft')),
    override_enabled    boolean,
    override_unit_price bigint  check (override_unit_price >= 0),
    override_limit      bigint  check (override_limit >= 0),
    used_this_month     bigint  not null check (used_this_month >= 0),
    limit_fired         boolean not null,
    primary key (workspace_id, feature_code),
    check ((plan_limit_amount is null) = (plan_limit_mode is null))
) with (fillfactor = 50);

create table credit_grants (
    workspace_id      uuid        not null references workspaces,
    grant_id          uuid        not null,
    source            text        not null check (source in ('allowance', 'rollover', 'purchase', 'promotion', 'adjustment')),
    amount            bigint      not null check (amount > 0),
    remaining         bigint      not null check (remaining >= 0),
    held              bigint      not null check (held >= 0),
    priority          smallint    not null check (priority between 0 and 100),
    effective_at      timestamptz not null,
    expires_at        timestamptz,
    feature_scope     text,
    payment_reference text,
    amount_minor      bigint      check (amount_minor >= 0),
    currency          text        check (currency ~ '^[A-Z]{3}$'),
    -- Kept by the writer beside remaining and held, so that spending does not touch an index.
    is_open           boolean     not null,
    primary key (workspace_id, grant_id),
    check (remaining + held <= amount),
    check (is_open = (remaining + held > 0)),
    check ((amount_minor is null) = (currency is null))
) with (fillfactor = 50);

create index credit_grants_open on credit_grants (workspace_id) where is_open;
create index credit_grants_expiring on credit_grants (expires_at)
    where is_open and expires_at is not null and source not in ('allowance', 'rollover');
create unique index credit_grants_one_per_payment on credit_grants (workspace_id, payment_reference)
    where payment_reference is not null and source = 'purchase';

create table commands (
    workspace_id    uuid        not null references workspaces,
    idempotency_key text        not null,
    command_id      uuid        not null,
    command_type    text        not null,
    fingerprint     bytea       not null check (octet_length(fingerprint) = 32),
    outcome         text        not null,
    status          smallint    not null,
    body            text        not null,
    actor           text        not null,
    correlation_id  text        not null,
    traceparent     text,
    metadata        text,
    received_at     timestamptz not null,
    recorded_at     timestamptz not null,
    primary key (workspace_id, idempotency_key)
);

create table credit_entries (
    workspace_id  uuid        not null,
    seq           bigint      not null check (seq >= 1),
    command_id    uuid        not null,
    from_account  text        not null,
    to_account    text        not null,
    grant_id      uuid,
    amount        bigint      not null check (amount > 0),
    balance_after bigint      not null,
    recorded_at   timestamptz not null,
    effective_at  timestamptz not null,
    primary key (workspace_id, seq),
    foreign key (workspace_id, grant_id) references credit_grants (workspace_id, grant_id),
    check (from_account <> to_account),
    check ((grant_id is not null) = (from_account in ('grant', 'held') or to_account in ('grant', 'held')))
);

-- No reference to workspaces, nor from event_outbox: it would be checked once more for every deduction
-- and every event. The command beside them has one, and the audit ties them to it.
create table usage_logs (
    workspace_id uuid        not null,
    seq          bigint      not null check (seq >= 1),
    command_id   uuid        not null,
    feature_code text        not null,
    user_id      text,
    credits      bigint      not null check (credits >= 0),
    quantity     bigint      check (quantity > 0),
    occurred_at  timestamptz not null,
    recorded_at  timestamptz not null,
    metadata     text,
    primary key (workspace_id, seq)
);

create table credit_resets (
    workspace_id    uuid        not null,
    subscription_id uuid        not null,
    period_start    timestamptz not null,
    period_end      timestamptz not null,
    usage_seq       bigint      not null check (usage_seq >= 0),
    command_id      uuid        not null,
    recorded_at     timestamptz not null,
    primary key (workspace_id, subscription_id, period_start),
    foreign key (workspace_id, subscription_id) references subscriptions (workspace_id, subscription_id)
);

-- The writers' side of a partition: locked first by every batch.
create table stream_partition (
    partition     smallint primary key check (partition between 0 and 15),
    seq           bigint   not null check (seq >= 0),
    last_event_id uuid,
    version       bigint   not null
) with (fillfactor = 10);

-- The publishers' side of a partition: apart, so that neither waits for the other.
create table stream_lease (
    partition    smallint primary key references stream_partition,
    owner        text,
    epoch        bigint   not null,
    leased_until timestamptz not null,
    generation   integer  not null check (generation >= 1),
    diverged_seq bigint
) with (fillfactor = 10);

insert into stream_partition (partition, seq, version) select n, 0, 0 from generate_series(0, 15) as n;
insert into stream_lease (partition, epoch, leased_until, generation) select n, 0, '-infinity', 1 from generate_series(0, 15) as n;

create table event_outbox (
    partition      smallint    not null check (partition between 0 and 15),
    seq            bigint      not null check (seq >= 1),
    event_id       uuid        not null unique,
    workspace_id   uuid        not null,
    workspace_seq  bigint      not null check (workspace_seq >= 1),
    event_type     text        not null,
    schema_version smallint    not null,
    occurred_at    timestamptz not null,
    correlation_id text        not null,
    causation_id   uuid        not null,
    traceparent    text,
    metadata       text,
    data           text        not null,
    primary key (partition, seq),
    unique (workspace_id, workspace_seq)
);

-- What was published, a row per batch: the outbox itself is never updated.
create table stream_batch (
    partition    smallint    not null check (partition between 0 and 15),
    generation   integer     not null,
    seq_from     bigint      not null check (seq_from >= 1),
    seq_to       bigint      not null,
    published_at timestamptz not null default now(),
    primary key (partition, generation, seq_to),
    check (seq_to >= seq_from)
);

create view event_outbox_published as
select o.*, b.published_at is not null as published, b.published_at
from event_outbox o
join stream_lease l on l.partition = o.partition
left join lateral (
    select s.published_at from stream_batch s
    where s.partition = o.partition and s.generation = l.generation and s.seq_to >= o.seq
    order by s.seq_to limit 1
) b on true;

create function refuse_change_of_history() returns trigger language plpgsql as $$
begin
    raise exception 'history is immutable: % on %', tg_op, tg_table_name using errcode = 'restrict_violation';
end
$$;

do $$
declare
    t text;
begin
    foreach t in array array['plan_versions', 'plan_features', 'commands', 'credit_entries', 'usage_logs', 'credit_resets', 'event_outbox', 'stream_batch'] loop
        execute format('create trigger history_is_immutable before update or delete on %I for each row execute function refuse_change_of_history()', t);
        execute format('create trigger history_is_not_truncated before truncate on %I for each statement execute function refuse_change_of_history()', t);
    end loop;
end
$$;
