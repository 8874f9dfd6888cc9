-- The schema. Amounts are micro-credits, instants are UTC in microseconds. How to query it: docs/SQL.md.
--
-- One fact in one place, so that a person can read, join and filter it. History is insert-only and found by
-- (workspace_id, recorded_at, seq). Rules that the database can hold are constraints; `visionscope verify`
-- holds the rest. History names its workspace, grant and command without a foreign key, which every deduction
-- would pay for.

-- Catalogue ------------------------------------------------------------------------------------------

-- What all servers of this database must agree on, from the first start on.
create table settings (
    name  text primary key,
    value text not null
);

create table plans (
    plan_code  text        primary key,
    source     text        not null check (source in ('file', 'api')),
    retired_at timestamptz -- not offered any more; workspaces that have it keep it
);

create table plan_versions (
    plan_code  text        not null references plans,
    version    integer     not null check (version >= 1),
    terms      jsonb       not null, -- all but the features
    created_at timestamptz not null,
    primary key (plan_code, version)
);

create table plan_features (
    plan_code     text    not null,
    version       integer not null,
    feature_code  text    not null,
    is_enabled    boolean not null,
    unit_price    bigint  check (unit_price >= 0),
    limit_credits bigint  check (limit_credits >= 0),
    limit_mode    text    check (limit_mode in ('hard', 'soft')),
    primary key (plan_code, version, feature_code),
    foreign key (plan_code, version) references plan_versions,
    check ((limit_credits is null) = (limit_mode is null))
);
create index plan_features_by_code on plan_features (feature_code);

-- Tenants --------------------------------------------------------------------------------------------

create table workspaces (
    workspace_id             uuid        primary key,
    name                     text        not null,
    time_zone                text        not null,
    monthly_limit_override   bigint      check (monthly_limit_override >= 0),
    overdraft_limit_override bigint      check (overdraft_limit_override >= 0),
    metadata                 text,
    created_at               timestamptz not null,
    partition_id             smallint    not null check (partition_id between 0 and 15)
);

-- A workspace's own terms for a feature. A column that is set replaces the plan's term.
create table workspace_feature_overrides (
    workspace_id  uuid    not null references workspaces,
    feature_code  text    not null,
    is_enabled    boolean,
    unit_price    bigint  check (unit_price >= 0),
    limit_credits bigint  check (limit_credits >= 0),
    primary key (workspace_id, feature_code)
);

create table subscriptions (
    subscription_id uuid        primary key,
    workspace_id    uuid        not null unique references workspaces,
    plan_code       text        not null,
    plan_version    integer     not null,
    status          text        not null check (status in ('active', 'canceled')),
    billing_anchor  timestamptz not null,
    period_start    timestamptz not null,
    period_end      timestamptz not null,
    version         bigint      not null check (version >= 1),
    pending_change  jsonb,
    canceled_at     timestamptz,
    updated_at      timestamptz not null,
    unique (workspace_id, subscription_id),
    foreign key (plan_code, plan_version) references plan_versions,
    check (period_end > period_start),
    check ((status = 'canceled') = (canceled_at is not null))
);
create index subscriptions_due on subscriptions (period_end) where status = 'active';

create table subscription_periods (
    workspace_id    uuid        not null,
    subscription_id uuid        not null,
    period_start    timestamptz not null,
    period_end      timestamptz not null,
    usage_seq       bigint      not null check (usage_seq >= 0), -- the last usage log before it
    command_id      uuid        not null,
    primary key (subscription_id, period_start),
    foreign key (workspace_id, subscription_id) references subscriptions (workspace_id, subscription_id)
);

-- Credits: one row per fact, changed in place -----------------------------------------------------------

create table workspace_credits (
    workspace_id        uuid        primary key references workspaces,
    current_credits     bigint      not null,
    held_credits        bigint      not null check (held_credits >= 0),
    debt_credits        bigint      not null check (debt_credits >= 0),
    overdraft_limit     bigint      not null check (overdraft_limit >= 0),
    used_this_month     bigint      not null check (used_this_month >= 0),
    uncollected_credits bigint      not null check (uncollected_credits >= 0), -- of this period's changes of plan
    reported_limit      bigint      check (reported_limit >= 0), -- the soft limit that was reported in this period
    rate_window_start   timestamptz not null,
    rate_window_used    bigint      not null check (rate_window_used >= 0),
    low_credit_alerts   smallint    not null, -- bit n: the plan's threshold n has fired
    open_holds          smallint    not null check (open_holds >= 0),
    version             bigint      not null check (version >= 0), -- the last command's seq: the optimistic lock
    ledger_seq          bigint      not null check (ledger_seq >= 0),
    usage_seq           bigint      not null check (usage_seq >= 0),
    event_seq           bigint      not null check (event_seq >= 0),
    updated_at          timestamptz not null,
    constraint never_below_the_overdraft check (debt_credits <= overdraft_limit and current_credits >= -overdraft_limit)
) with (fillfactor = 50);

-- What was used in the billing period that began at window_start. A row of an older window counts as nothing
-- used, so a reset touches none. A new kind of limit is a new scope.
create table usage_counters (
    workspace_id   uuid        not null references workspaces,
    scope          text        not null check (scope = 'feature'),
    subject        text        not null, -- the feature code
    window_start   timestamptz not null,
    used_credits   bigint      not null check (used_credits >= 0),
    reported_limit bigint      check (reported_limit >= 0), -- the soft limit that was reported in this window
    primary key (workspace_id, scope, subject)
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
    reason            text,                          -- why a caller granted it
    metadata          text,                          -- of the command that issued it
    bonus_grant_id    uuid,                          -- of a purchase: the grant of its bonus
    expiry_warning_at timestamptz,                   -- when to raise CreditsExpiring; null once it was raised
    created_at        timestamptz not null,          -- recorded_at and seq of the ledger entry that issued it
    issued_seq        bigint      not null check (issued_seq >= 1),
    is_open           boolean     not null generated always as (remaining + held > 0) stored,
    primary key (workspace_id, grant_id),
    check (remaining + held <= amount),
    check ((amount_minor is null) = (currency is null))
) with (fillfactor = 50);
create index credit_grants_open on credit_grants (workspace_id, created_at, issued_seq) where is_open;
create index credit_grants_listed on credit_grants (workspace_id, created_at, issued_seq);
create index credit_grants_expiring on credit_grants (expires_at)
    where is_open and expires_at is not null and source not in ('allowance', 'rollover');
create index credit_grants_warning on credit_grants (expiry_warning_at) where is_open and expiry_warning_at is not null;
create index credit_grants_purchases on credit_grants (workspace_id, created_at, issued_seq) where source = 'purchase';
create unique index credit_grants_payment on credit_grants (workspace_id, payment_reference)
    where payment_reference is not null and source = 'purchase';

create table credit_holds (
    workspace_id      uuid        not null references workspaces,
    hold_id           uuid        not null,
    feature_code      text        not null,
    user_id           text,
    amount            bigint      not null check (amount >= 0),
    overdraft         bigint      not null check (overdraft between 0 and amount), -- what of it no grant covers
    unit_price        bigint      check (unit_price >= 0), -- the feature's, when it was placed
    metadata          text,                          -- of the command that placed it
    command_id        uuid        not null,
    state             text        not null check (state in ('open', 'captured', 'released', 'expired')),
    expires_at        timestamptz not null,
    created_at        timestamptz not null,          -- recorded_at of its command: no other hold of the workspace has it
    closed_at         timestamptz,
    captured          bigint      not null check (captured >= 0), -- may be more than the amount
    usage_recorded_at timestamptz,                   -- the usage log of the capture
    usage_seq         bigint,
    primary key (workspace_id, hold_id),
    check ((state = 'open') = (closed_at is null)),
    check ((usage_recorded_at is null) = (usage_seq is null)),
    check (state <> 'captured' or usage_seq is not null),
    check (state in ('captured', 'expired') or usage_seq is null),
    check (usage_seq is not null or captured = 0)
) with (fillfactor = 50);
create index credit_holds_open on credit_holds (workspace_id) where state = 'open';
create index credit_holds_expiring on credit_holds (expires_at) where state = 'open';
create index credit_holds_listed on credit_holds (workspace_id, created_at);
create index credit_holds_by_state on credit_holds (workspace_id, state, created_at);

-- What a hold reserves of each grant, in burn order. Only an open hold reserves it.
create table credit_hold_grants (
    workspace_id uuid     not null,
    hold_id      uuid     not null,
    position     smallint not null check (position >= 0),
    grant_id     uuid     not null,
    amount       bigint   not null check (amount > 0),
    primary key (workspace_id, hold_id, position),
    foreign key (workspace_id, hold_id) references credit_holds,
    foreign key (workspace_id, grant_id) references credit_grants
);

-- History: insert-only. All rows of a command share its recorded_at, which rises strictly within a workspace. --

-- The audit record and the stored answer: a key and its answer are remembered for ever.
create table commands (
    workspace_id    uuid        not null,
    idempotency_key text        not null,
    command_id      uuid        not null,
    seq             bigint      not null check (seq >= 1),
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

create table ledger_entries (
    workspace_id   uuid        not null,
    seq            bigint      not null check (seq >= 1),
    command_id     uuid        not null,
    debit_account  text        not null,
    credit_account text        not null,
    grant_id       uuid,
    amount         bigint      not null check (amount > 0),
    balance_after  bigint      not null,
    recorded_at    timestamptz not null,
    effective_at   timestamptz not null,
    primary key (workspace_id, recorded_at, seq),
    check (debit_account <> credit_account),
    check ((grant_id is not null) = (debit_account in ('grant', 'held') or credit_account in ('grant', 'held')))
);
create index ledger_entries_by_grant on ledger_entries (workspace_id, grant_id, recorded_at, seq)
    where grant_id is not null;

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
    primary key (workspace_id, recorded_at, seq)
);
create index usage_logs_by_feature on usage_logs (workspace_id, feature_code, recorded_at, seq);

-- What was given back of a usage log. Together it is never more than its credits.
create table usage_refunds (
    workspace_id      uuid        not null,
    usage_recorded_at timestamptz not null,
    usage_seq         bigint      not null check (usage_seq >= 1),
    refund_id         uuid        not null,
    credits           bigint      not null check (credits > 0),
    is_counted        boolean     not null, -- whether the usage counters of the period fell by it
    reason            text,
    command_id        uuid        not null,
    recorded_at       timestamptz not null,
    primary key (workspace_id, usage_recorded_at, usage_seq, refund_id)
);

-- What was taken back of a purchase. Together it is never more than what was bought and paid.
create table purchase_reversals (
    workspace_id  uuid        not null,
    grant_id      uuid        not null, -- of the purchase
    reversal_id   uuid        not null,
    credits       bigint      not null check (credits >= 0), -- removed from the grant, owed and written off
    bonus_credits bigint      not null check (bonus_credits >= 0), -- removed from the grant of the bonus
    bonus_owed    bigint      not null check (bonus_owed >= 0), -- what was held of the bonus and became debt
    owed          bigint      not null check (owed >= 0), -- what became debt
    written_off   bigint      not null check (written_off >= 0),
    amount_minor  bigint      not null check (amount_minor >= 0),
    reason        text        not null check (reason in ('refund', 'chargeback', 'mistake')),
    command_id    uuid        not null,
    recorded_at   timestamptz not null,
    primary key (workspace_id, grant_id, reversal_id),
    check (owed + written_off <= credits),
    check (credits > 0 or amount_minor > 0)
);

-- Outbox and streams -----------------------------------------------------------------------------------

-- The writers' side of a partition: its head. Every batch locks it first.
create table outbox_partitions (
    partition_id  smallint primary key check (partition_id between 0 and 15),
    seq           bigint   not null check (seq >= 0),
    last_event_id uuid,
    version       bigint   not null
) with (fillfactor = 10);

create table event_outbox (
    partition_id   smallint    not null check (partition_id between 0 and 15),
    seq            bigint      not null check (seq >= 1),
    event_id       uuid        not null,
    workspace_id   uuid        not null,
    workspace_seq  bigint      not null check (workspace_seq >= 1),
    event_type     text        not null,
    schema_version smallint    not null check (schema_version >= 1),
    recorded_at    timestamptz not null check (recorded_at between '1900-01-01Z' and '9999-12-31T23:59:59.999999Z'),
    correlation_id text        not null,
    causation_id   uuid        not null,
    traceparent    text,
    data           text        not null,
    primary key (partition_id, seq)
);
create unique index event_outbox_workspace on event_outbox (workspace_id, workspace_seq);
create unique index event_outbox_id on event_outbox (event_id);

-- The publishers' side of a partition: apart, so that neither waits for the other.
create table stream_leases (
    partition_id smallint primary key references outbox_partitions,
    owner        text,
    epoch        bigint   not null,
    leased_until timestamptz not null,
    generation   integer  not null check (generation >= 1),
    diverged_seq bigint,
    -- The first event that the stream must still hold. It only rises; events before it may have been trimmed.
    floor_seq    bigint   not null default 1 check (floor_seq >= 1)
) with (fillfactor = 10);

insert into outbox_partitions (partition_id, seq, version) select n, 0, 0 from generate_series(0, 15) as n;
insert into stream_leases (partition_id, epoch, leased_until, generation)
select n, 0, '-infinity', 1 from generate_series(0, 15) as n;

-- What was published, a row per batch: the outbox itself is never updated. Rows are kept for some days, and as long
-- as the stream must hold their events. A new generation begins at the floor, so what is before it counts as published.
create table stream_batches (
    partition_id smallint    not null check (partition_id between 0 and 15),
    generation   integer     not null,
    seq_from     bigint      not null check (seq_from >= 1),
    seq_to       bigint      not null,
    published_at timestamptz not null default now(),
    primary key (partition_id, generation, seq_to),
    check (seq_to >= seq_from)
);

-- The instant is null where the batch's row is no longer kept.
create view event_outbox_published as
select o.*, o.seq <= coalesce((
        select max(s.seq_to) from stream_batches s where s.partition_id = o.partition_id and s.generation = l.generation
    ), l.floor_seq - 1) as published,
    (
        select case when s.seq_from <= o.seq then s.published_at end from stream_batches s
        where s.partition_id = o.partition_id and s.generation = l.generation and s.seq_to >= o.seq
        order by s.seq_to limit 1
    ) as published_at
from event_outbox o
join stream_leases l on l.partition_id = o.partition_id;

-- Consumers ---------------------------------------------------------------------------------------------

-- What this server makes of its events. What is read is the figures of `version`; `building_version` is built
-- beside it.
create table consumers (
    consumer              text not null check (consumer in ('analytics', 'billing', 'notifications')),
    version               integer not null check (version >= 1),
    fold_version          integer not null, -- the version of the server's code that makes these figures
    building_version      integer check (building_version > version),
    building_fold_version integer,
    state                 text not null check (state in ('running', 'paused', 'tripped')),
    reason                text, -- why it does not run
    changed_by            text,
    changed_at            timestamptz not null,
    primary key (consumer),
    check ((building_version is null) = (building_fold_version is null))
);

-- How far each build of a consumer is in a partition. Only who moves it from where it is has taken these events.
create table consumer_cursors (
    consumer      text not null references consumers,
    version       integer not null,
    partition_id  smallint not null check (partition_id between 0 and 15),
    seq           bigint not null check (seq >= 0), -- the last event that was taken
    last_event_id uuid,
    epoch         bigint not null, -- raised when a parked workspace is tried again
    waiting_for   text, -- the type and the schema version that the next event has, and this server does not know
    updated_at    timestamptz not null,
    primary key (consumer, version, partition_id)
) with (fillfactor = 10);

-- Who takes the events of a partition. Leases only save work.
create table consumer_leases (
    partition_id smallint not null references outbox_partitions,
    owner        text,
    leased_until timestamptz not null,
    primary key (partition_id)
) with (fillfactor = 10);

-- What failed for good: events that a consumer could not take, and jobs.
create table dead_letters (
    dead_letter_id  uuid not null,
    source          text not null check (source in ('consumer', 'job')),
    name            text not null, -- of the consumer or the queue
    version         integer, -- of the build
    workspace_id    uuid,
    partition_id    smallint check (partition_id between 0 and 15),
    seq             bigint,
    workspace_seq   bigint,
    event_id        uuid,
    job_id          uuid,
    kind            text not null, -- the type of the event, or the kind of the job
    fingerprint     text not null, -- the same for letters with one cause
    error_class     text not null,
    error           text not null,
    attempts        integer not null check (attempts >= 1),
    first_failed_at timestamptz not null,
    last_failed_at  timestamptz not null,
    state           text not null check (state in ('open', 'replaying', 'resolved', 'discarded')),
    replay_id       uuid, -- the act of an operator that tried it again last
    resolved_at     timestamptz, -- since when it is neither open nor replaying
    primary key (dead_letter_id),
    constraint a_letter_of_a_consumer_names_its_event check (source <> 'consumer' or num_nulls(
        version, workspace_id, partition_id, seq, workspace_seq, event_id
    ) = 0),
    constraint a_letter_of_a_job_names_its_job check ((source = 'job') = (job_id is not null))
);

create index dead_letters_by_state on dead_letters (state, last_failed_at, dead_letter_id);
create index dead_letters_of_replay on dead_letters (replay_id, state) where replay_id is not null;
create index dead_letters_of_workspace on dead_letters (source, name, version, workspace_id);
create unique index dead_letters_of_job on dead_letters (job_id) where job_id is not null;

-- Workspaces that a consumer leaves out, from the event of the dead letter on.
create table parked_workspaces (
    consumer       text not null references consumers,
    version        integer not null,
    workspace_id   uuid not null,
    partition_id   smallint not null check (partition_id between 0 and 15),
    workspace_seq  bigint not null check (workspace_seq >= 1), -- the next event of it to take
    dead_letter_id uuid not null references dead_letters,
    since          timestamptz not null,
    replay_at      timestamptz, -- from when on its events are taken again; null while it waits for an operator
    primary key (consumer, version, workspace_id)
);

create index parked_workspaces_by_letter on parked_workspaces (dead_letter_id);

-- The usage of a feature by a workspace on one day, in UTC, by when it was charged.
create table usage_days (
    version      integer not null,
    workspace_id uuid not null,
    day          timestamptz not null,
    feature_code text not null,
    partition_id smallint not null check (partition_id between 0 and 15),
    credits      bigint not null check (credits >= 0), -- what was charged; refunds are not taken off
    refunded     bigint not null check (refunded >= 0), -- what was given back on that day
    quantity     bigint not null check (quantity >= 0),
    deductions   bigint not null check (deductions >= 0),
    refused      bigint not null check (refused >= 0),
    primary key (version, workspace_id, day, feature_code)
) with (fillfactor = 80);

-- The usage of a feature on a plan in one hour. The figure of the server is the sum over the partitions.
create table usage_hours (
    version      integer not null,
    partition_id smallint not null check (partition_id between 0 and 15),
    hour         timestamptz not null,
    plan_code    text not null,
    feature_code text not null,
    credits      bigint not null check (credits >= 0),
    deductions   bigint not null check (deductions >= 0),
    refused      bigint not null check (refused >= 0),
    primary key (version, hour, plan_code, feature_code, partition_id)
) with (fillfactor = 50);

-- Payments and workspaces of a plan on one day, in minor units of the currency. The row without a currency counts
-- workspaces.
create table revenue_days (
    version             integer not null,
    partition_id        smallint not null check (partition_id between 0 and 15),
    day                 timestamptz not null,
    plan_code           text not null,
    currency            text not null,
    purchases           bigint not null check (purchases >= 0),
    credits_sold        bigint not null check (credits_sold >= 0),
    paid_minor          bigint not null check (paid_minor >= 0),
    returned_minor      bigint not null check (returned_minor >= 0),
    recognised_minor    bigint not null, -- what was earned, less what refunds of usage took back
    active_workspaces   bigint not null check (active_workspaces >= 0),
    new_workspaces      bigint not null check (new_workspaces >= 0),
    canceled_workspaces bigint not null check (canceled_workspaces >= 0),
    primary key (version, day, currency, plan_code, partition_id)
) with (fillfactor = 50);

-- What analytics must know of a workspace to take its next event.
create table analytics_workspaces (
    version      integer not null,
    workspace_id uuid not null,
    partition_id smallint not null check (partition_id between 0 and 15),
    plan_code    text not null,
    active_day   timestamptz, -- the last day on which it used credits
    incomplete   boolean not null, -- an operator has discarded one of its events
    primary key (version, workspace_id)
) with (fillfactor = 90);

-- How much of each purchase was earned so far.
create table purchase_revenue (
    version          integer not null,
    workspace_id     uuid not null,
    grant_id         uuid not null,
    partition_id     smallint not null check (partition_id between 0 and 15),
    currency         text not null check (length(currency) = 3),
    amount_minor     bigint not null check (amount_minor >= 0), -- what was paid and not given back
    credits          bigint not null check (credits >= 0), -- what was bought and not reversed
    used             bigint not null, -- spent, expired, or used to repay debt
    recognised_minor bigint not null,
    primary key (version, workspace_id, grant_id)
) with (fillfactor = 80);

-- What became of a workspace's credits in one period. Only the newest statement of a workspace is open.
create table statements (
    version      integer not null,
    workspace_id uuid not null,
    period_start timestamptz not null,
    partition_id smallint not null check (partition_id between 0 and 15),
    period_end   timestamptz, -- null while there is no subscription
    plan_code    text not null,
    plan_version integer not null,
    opening      bigint not null,
    granted      bigint not null check (granted >= 0),
    purchased    bigint not null check (purchased >= 0),
    bonus        bigint not null check (bonus >= 0),
    refunded     bigint not null check (refunded >= 0),
    consumed     bigint not null check (consumed >= 0),
    expired      bigint not null check (expired >= 0),
    removed      bigint not null check (removed >= 0),
    reversed     bigint not null check (reversed >= 0),
    voided       bigint not null check (voided >= 0),
    unexplained  bigint, -- what discarded events have moved; null until the next event tells
    closing      bigint not null,
    debt_repaid  bigint not null check (debt_repaid >= 0),
    rolled_over  bigint not null check (rolled_over >= 0),
    first_seq    bigint not null, -- the number of the first event in the workspace
    last_seq     bigint not null check (last_seq >= first_seq),
    closed_at    timestamptz, -- null while the statement is open
    sha256       bytea check (octet_length(sha256) = 32),
    primary key (version, workspace_id, period_start),
    check (closing = opening + granted + purchased + bonus + refunded - consumed - expired - removed - reversed - voided
        + unexplained),
    check ((closed_at is null) = (sha256 is null)),
    check (closed_at is null or (period_end is not null and unexplained is not null))
) with (fillfactor = 60);

create index statements_open on statements (version, workspace_id) where closed_at is null;

-- The usage of a feature in a statement.
create table statement_lines (
    version      integer not null,
    workspace_id uuid not null,
    period_start timestamptz not null,
    feature_code text not null,
    partition_id smallint not null check (partition_id between 0 and 15),
    credits      bigint not null check (credits >= 0), -- what was charged; refunds are not taken off
    refunded     bigint not null check (refunded >= 0), -- what was given back in the period
    quantity     bigint not null check (quantity >= 0),
    deductions   bigint not null check (deductions >= 0),
    refused      bigint not null check (refused >= 0),
    primary key (version, workspace_id, period_start, feature_code)
) with (fillfactor = 80);

-- What notifications must know of a workspace to take its next event.
create table notified_workspaces (
    version      integer not null,
    workspace_id uuid not null,
    partition_id smallint not null check (partition_id between 0 and 15),
    period_start timestamptz not null,
    added_seq    bigint not null, -- the event that added credits last
    is_exhausted boolean not null, -- whether it was told since then that credits are exhausted
    primary key (version, workspace_id)
) with (fillfactor = 90);

-- What the people of a workspace should be told. A row never changes, and old ones can be deleted.
create table notifications (
    version         integer not null,
    workspace_id    uuid not null,
    kind            text not null check (kind in ('low_credit', 'credits_exhausted', 'limit_reached', 'credits_expiring',
        'plan_changed', 'statement_closed')),
    data            jsonb not null, -- the figures that a message needs, by kind
    subject         text not null check (length(subject) between 1 and 128),
    period_start    timestamptz not null,
    partition_id    smallint not null check (partition_id between 0 and 15),
    notification_id uuid not null, -- made of the event's id and the kind
    event_id        uuid not null,
    workspace_seq   bigint not null,
    created_at      timestamptz not null, -- when the event was recorded
    primary key (version, workspace_id, kind, subject, period_start)
);

create index notifications_of_workspace on notifications (version, workspace_id, workspace_seq, notification_id);
create index notifications_of_kind on notifications (version, workspace_id, kind, workspace_seq, notification_id);
create index notifications_by_time on notifications (created_at);

insert into consumers (consumer, version, fold_version, state, changed_at)
values ('analytics', 1, 1, 'running', now()), ('billing', 1, 1, 'running', now()),
    ('notifications', 1, 1, 'running', now());
insert into consumer_cursors (consumer, version, partition_id, seq, epoch, updated_at)
select c.consumer, c.version, p.partition_id, 0, 0, now() from consumers c cross join outbox_partitions p;
insert into consumer_leases (partition_id, leased_until) select partition_id, '-infinity' from outbox_partitions;

-- Queues and jobs ---------------------------------------------------------------------------------------

-- How the jobs of a queue are run. The configuration creates queues; from then on, operators change them here.
create table queues (
    queue                     text not null check (length(queue) between 1 and 64),
    weight                    integer not null check (weight between 1 and 100),
    is_paused                 boolean not null,
    max_running               integer check (max_running >= 1),
    max_running_per_workspace integer check (max_running_per_workspace >= 1),
    lease_s                   integer not null check (lease_s >= 1), -- without a heartbeat
    timeout_s                 integer not null check (timeout_s >= 1), -- of an attempt
    max_attempts              integer not null check (max_attempts >= 1),
    retry_delays_s            jsonb not null, -- after the first, second and every later attempt
    keep_done_h               integer not null check (keep_done_h >= 1),
    changed_by                text,
    changed_at                timestamptz not null,
    primary key (queue)
);

-- Work that is not over. A job that is over is moved to jobs_done. (No foreign key to its queue: that row would be locked by every
-- new job.)
create table jobs (
    job_id              uuid not null,
    queue               text not null,
    kind                text not null,
    runner              text not null check (runner in ('server', 'system', 'worker')),
    workspace_id        uuid, -- null of the server's own jobs
    state               text not null check (state in ('holding', 'waiting', 'ready', 'capped', 'running', 'settling')),
    priority            smallint not null check (priority between 0 and 9),
    rank                timestamptz not null, -- the place in the queue: the lowest goes first
    run_at              timestamptz not null, -- when it is ready, for the first time or for the next attempt
    attempt             integer not null check (attempt >= 0), -- the attempts that have begun and count
    max_attempts        integer not null check (max_attempts >= 1),
    args                text not null, -- JSON
    unique_key          text, -- only one job of a workspace and a kind has it at a time
    fingerprint         bytea not null check (octet_length(fingerprint) = 32), -- of the request
    hold                jsonb, -- what a metered job reserves
    hold_id             uuid,
    held_credits        bigint check (held_credits >= 0),
    unit_price          bigint check (unit_price >= 0), -- at which a quantity is captured
    hold_expires_at     timestamptz,
    outcome             text check (outcome in ('completed', 'failed', 'canceled')),
    result              text, -- JSON
    actual              jsonb, -- what a metered job has cost
    ended_by            uuid, -- the lease of the last attempt that its worker has ended
    cancel_requested_at timestamptz,
    error_class         text, -- of the last attempt that has failed
    error               text,
    dead_letter_id      uuid, -- the letter that it tries again
    replay_id           uuid, -- the act of the operator who wants that
    actor               text not null,
    correlation_id      text not null,
    causation_id        uuid,
    traceparent         text,
    created_at          timestamptz not null,
    changed_at          timestamptz not null,
    primary key (job_id),
    constraint a_metered_job_knows_its_hold check ((hold_id is null) = (held_credits is null) and (hold_id is null or hold is not null)),
    constraint a_job_is_held_or_settled_with_a_hold check (
        (state <> 'holding' or hold is not null) and (state <> 'settling' or (hold_id is not null and outcome is not null))
    ),
    constraint a_replay_names_its_letter check ((dead_letter_id is null) = (replay_id is null)),
    constraint an_error_has_a_class check ((error_class is null) = (error is null))
) with (fillfactor = 70);

create index jobs_ready on jobs (queue, runner, rank, job_id) where state = 'ready';
-- The last rank of a line of jobs: the next one ranks behind it.
create index jobs_lines on jobs (queue, workspace_id, priority, rank) where state in ('ready', 'capped');
create index jobs_capped on jobs (queue, workspace_id, rank, job_id) where state = 'capped';
create index jobs_set_aside on jobs (changed_at, job_id) where state = 'capped';
create index jobs_waiting on jobs (run_at, job_id) where state = 'waiting';
create index jobs_unsettled on jobs (changed_at, job_id) where state in ('holding', 'settling');
create index jobs_holds on jobs (hold_expires_at, job_id) where hold_expires_at is not null;
create index jobs_of_workspace on jobs (workspace_id, created_at, job_id) where workspace_id is not null;
create unique index jobs_unique on jobs (workspace_id, kind, unique_key) where unique_key is not null and workspace_id is not null;
create unique index jobs_unique_of_server on jobs (kind, unique_key) where unique_key is not null and workspace_id is null;

-- The jobs that workers have. Few rows, and no other index: a heartbeat changes its row in place.
create table job_leases (
    job_id       uuid not null,
    lease_id     uuid not null, -- who does not know it cannot end the job
    worker_id    uuid not null,
    queue        text not null,
    workspace_id uuid,
    started_at   timestamptz not null,
    leased_until timestamptz not null,
    deadline     timestamptz not null,
    progress     text, -- what the worker has told last, as JSON
    primary key (job_id)
) with (fillfactor = 50);

-- The processes that run jobs.
create table workers (
    worker_id  uuid not null,
    name       text not null,
    subject    text not null, -- of the token that has registered it: nobody else speaks for it
    runner     text not null check (runner in ('server', 'system', 'worker')),
    queues     jsonb not null,
    slots      integer not null check (slots >= 1), -- how many jobs it runs at once
    labels     text, -- JSON
    version    text, -- of its program
    state      text not null check (state in ('active', 'draining', 'gone')),
    started_at timestamptz not null,
    seen_at    timestamptz not null, -- up to ten seconds ago while it lives
    primary key (worker_id)
);

-- Work that the server does again and again. Whoever moves next_at on sends the job.
create table schedules (
    kind       text not null, -- of its jobs
    next_at    timestamptz not null,
    is_paused  boolean not null,
    fired_at   timestamptz, -- the last time
    job_id     uuid, -- of that time
    changed_by text,
    changed_at timestamptz not null,
    primary key (kind)
);

-- Attempts that are over, as long as their job is kept.
create table job_attempts (
    job_id      uuid not null,
    attempt     integer not null check (attempt >= 1),
    worker_id   uuid not null,
    started_at  timestamptz not null,
    ended_at    timestamptz not null,
    outcome     text not null check (outcome in ('completed', 'failed', 'lost')),
    error_class text,
    error       text,
    primary key (job_id, attempt)
);

-- Jobs that are over.
create table jobs_done (
    job_id              uuid not null,
    queue               text not null,
    kind                text not null,
    runner              text not null check (runner in ('server', 'system', 'worker')),
    workspace_id        uuid, -- null of the server's own jobs
    state               text not null check (state in ('completed', 'failed', 'canceled', 'rejected')),
    priority            smallint not null check (priority between 0 and 9),
    rank                timestamptz not null, -- the place in the queue: the lowest goes first
    run_at              timestamptz not null, -- when it is ready, for the first time or for the next attempt
    attempt             integer not null check (attempt >= 0), -- the attempts that have begun and count
    max_attempts        integer not null check (max_attempts >= 1),
    args                text not null, -- JSON
    unique_key          text, -- only one job of a workspace and a kind has it at a time
    fingerprint         bytea not null check (octet_length(fingerprint) = 32), -- of the request
    hold                jsonb, -- what a metered job reserves
    hold_id             uuid,
    held_credits        bigint check (held_credits >= 0),
    unit_price          bigint check (unit_price >= 0), -- at which a quantity is captured
    hold_expires_at     timestamptz,
    outcome             text check (outcome in ('completed', 'failed', 'canceled')),
    result              text, -- JSON
    actual              jsonb, -- what a metered job has cost
    ended_by            uuid, -- the lease of the last attempt that its worker has ended
    cancel_requested_at timestamptz,
    error_class         text, -- of the last attempt that has failed
    error               text,
    dead_letter_id      uuid, -- the letter that it tries again
    replay_id           uuid, -- the act of the operator who wants that
    actor               text not null,
    correlation_id      text not null,
    causation_id        uuid,
    traceparent         text,
    created_at          timestamptz not null,
    changed_at          timestamptz not null,
    finished_at         timestamptz not null,
    keep_until          timestamptz not null, -- from then on it may be deleted
    captured_credits    bigint check (captured_credits >= 0),
    primary key (job_id)
);

create index jobs_done_of_workspace on jobs_done (workspace_id, created_at, job_id) where workspace_id is not null;
create index jobs_done_kept on jobs_done (keep_until, job_id);

-- What operators did by hand, and why.
create table ops_audit (
    audit_id uuid not null, -- in the order of time
    at       timestamptz not null,
    actor    text not null,
    action   text not null,
    target   text not null,
    reason   text not null,
    before   text, -- JSON
    after    text, -- JSON
    primary key (audit_id)
);

-- For analysts: whole workspaces, in credits. A question about a range filters usage_logs by recorded_at.
-- What was charged; refunds (usage_refunds) are not taken off.
create view usage_daily as
select workspace_id, date_trunc('day', recorded_at at time zone 'UTC') as day, feature_code,
    sum(credits) / 1e6 as credits, count(*) as deductions
from usage_logs
group by 1, 2, 3;

-- What the server's statements need ----------------------------------------------------------------------

-- Each table that is written in batches has a type <table>_row with its columns, and a batch's rows come as one
-- array of it. A type, and not the table itself, so that a later migration can add a column while servers of the
-- version before still write.
do $$
declare
    t text;
begin
    foreach t in array array['plan_versions', 'plan_features', 'workspaces', 'workspace_feature_overrides',
        'subscriptions', 'subscription_periods', 'workspace_credits', 'usage_counters', 'credit_grants', 'credit_holds',
        'credit_hold_grants', 'commands',
        'ledger_entries', 'usage_logs', 'usage_refunds', 'purchase_reversals', 'event_outbox', 'dead_letters',
        'parked_workspaces', 'usage_days', 'usage_hours', 'revenue_days', 'analytics_workspaces', 'purchase_revenue', 'ops_audit',
        'statements', 'statement_lines', 'notified_workspaces', 'notifications', 'queues', 'jobs', 'job_leases',
        'workers', 'schedules', 'job_attempts', 'jobs_done'] loop
        execute format('create type %I as (%s)', t || '_row', (
            select string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' order by attnum)
            from pg_attribute
            where attrelid = t::regclass and attnum > 0 and attgenerated = ''
        ));
    end loop;
end
$$;

-- Ends a statement that found something else than it was decided on: whatever it wrote is undone.
create function refuse(state text, reason text) returns boolean language plpgsql as $$
begin
    raise exception using errcode = state, message = reason;
end
$$;

create function refuse_change_of_history() returns trigger language plpgsql as $$
begin
    raise exception 'history is immutable: % on %', tg_op, tg_table_name using errcode = 'restrict_violation';
end
$$;

create function refuse_deletion_from_the_floor_on() returns trigger language plpgsql as $$
begin
    if exists (select from stream_leases l
            where l.partition_id = old.partition_id and l.generation = old.generation and l.floor_seq <= old.seq_to) then
        raise exception 'history is immutable: the stream must hold the events of this row of %', tg_table_name
            using errcode = 'restrict_violation';
    end if;
    return old;
end
$$;

create function refuse_change_of_closed_statement() returns trigger language plpgsql as $$
begin
    raise exception 'a closed statement is immutable' using errcode = 'restrict_violation';
end
$$;

create function refuse_line_of_closed_statement() returns trigger language plpgsql as $$
declare
    line record := case tg_op when 'UPDATE' then old else new end;
begin
    if exists (select from statements s
            where s.version = line.version and s.workspace_id = line.workspace_id and s.period_start = line.period_start
                and s.closed_at is not null) then
        raise exception 'the lines of a closed statement are immutable' using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;

create function refuse_deletion_of_build_in_use() returns trigger language plpgsql as $$
begin
    if exists (select from consumers c where c.consumer = 'billing' and c.version = old.version) then
        raise exception 'the statements in use are kept: delete on %', tg_table_name using errcode = 'restrict_violation';
    end if;
    return old;
end
$$;

do $$
declare
    t text;
begin
    foreach t in array array['plan_versions', 'plan_features', 'subscription_periods', 'credit_hold_grants', 'commands',
        'ledger_entries', 'usage_logs', 'usage_refunds', 'purchase_reversals', 'event_outbox', 'ops_audit'] loop
        execute format('create trigger history_is_immutable before update or delete on %I for each row execute function refuse_change_of_history()', t);
        execute format('create trigger history_is_not_truncated before truncate on %I for each statement execute function refuse_change_of_history()', t);
    end loop;
    -- Of the batches, only those that the stream need no longer hold can be deleted.
    create trigger history_is_immutable before update on stream_batches for each row execute function refuse_change_of_history();
    create trigger history_is_not_truncated before truncate on stream_batches for each statement execute function refuse_change_of_history();
    create trigger batches_from_the_floor_on_are_kept before delete on stream_batches for each row execute function refuse_deletion_from_the_floor_on();
    -- Notifications can be deleted.
    create trigger notifications_are_immutable before update on notifications for each row execute function refuse_change_of_history();
    -- Statements of a build that is no longer in use can be deleted.
    create trigger closed_statements_are_immutable before update on statements for each row when (old.closed_at is not null) execute function refuse_change_of_closed_statement();
    create trigger lines_of_closed_statements_are_immutable before insert or update on statement_lines for each row execute function refuse_line_of_closed_statement();
    foreach t in array array['statements', 'statement_lines'] loop
        execute format('create trigger statements_in_use_are_kept before delete on %I for each row execute function refuse_deletion_of_build_in_use()', t);
        execute format('create trigger statements_are_not_truncated before truncate on %I for each statement execute function refuse_change_of_history()', t);
    end loop;
    -- History names these rows.
    foreach t in array array['workspaces', 'credit_grants', 'credit_holds'] loop
        execute format('create trigger rows_are_kept before delete on %I for each row execute function refuse_change_of_history()', t);
        execute format('create trigger rows_are_not_truncated before truncate on %I for each statement execute function refuse_change_of_history()', t);
    end loop;
end
$$;
