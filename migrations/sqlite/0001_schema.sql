-- The schema: the twin of migrations/postgres/0001_schema.sql, table by table. Ids are 16-byte blobs, instants are
-- microseconds since 1970, amounts are micro-credits, booleans are 0 or 1. Every table is STRICT, so a value of
-- another type is refused. How to query it: docs/SQL.md.
--
-- WITHOUT ROWID keeps a row in the tree of its primary key: one tree to write instead of two, and the rows of a
-- workspace lie together. Tables with wide rows (terms, stored answers, events) stay rowid tables: their rows are
-- appended, and only a narrow key goes to a random place.

-- Catalogue ------------------------------------------------------------------------------------------

-- What all servers of this database must agree on, from the first start on.
create table settings (
    name  text primary key not null,
    value text not null
) strict, without rowid;

create table plans (
    plan_code  text    primary key not null,
    source     text    not null check (source in ('file', 'api')),
    retired_at integer -- not offered any more; workspaces that have it keep it
) strict, without rowid;

create table plan_versions (
    plan_code  text    not null references plans,
    version    integer not null check (version >= 1),
    terms      text    not null check (json_valid(terms)), -- all but the features
    created_at integer not null,
    primary key (plan_code, version)
) strict;

create table plan_features (
    plan_code     text    not null,
    version       integer not null,
    feature_code  text    not null,
    is_enabled    integer not null check (is_enabled in (0, 1)),
    unit_price    integer check (unit_price >= 0),
    limit_credits integer check (limit_credits >= 0),
    limit_mode    text    check (limit_mode in ('hard', 'soft')),
    primary key (plan_code, version, feature_code),
    foreign key (plan_code, version) references plan_versions,
    check ((limit_credits is null) = (limit_mode is null))
) strict, without rowid;
create index plan_features_by_code on plan_features (feature_code);

-- Tenants --------------------------------------------------------------------------------------------

create table workspaces (
    workspace_id             blob    primary key not null check (length(workspace_id) = 16),
    name                     text    not null,
    time_zone                text    not null,
    monthly_limit_override   integer check (monthly_limit_override >= 0),
    overdraft_limit_override integer check (overdraft_limit_override >= 0),
    metadata                 text,
    created_at               integer not null,
    partition_id             integer not null check (partition_id between 0 and 15)
) strict, without rowid;

-- A workspace's own terms for a feature. A column that is set replaces the plan's term.
create table workspace_feature_overrides (
    workspace_id  blob    not null references workspaces,
    feature_code  text    not null,
    is_enabled    integer check (is_enabled in (0, 1)),
    unit_price    integer check (unit_price >= 0),
    limit_credits integer check (limit_credits >= 0),
    primary key (workspace_id, feature_code)
) strict, without rowid;

create table subscriptions (
    subscription_id blob    primary key not null check (length(subscription_id) = 16),
    workspace_id    blob    not null unique references workspaces,
    plan_code       text    not null,
    plan_version    integer not null,
    status          text    not null check (status in ('active', 'canceled')),
    billing_anchor  integer not null,
    period_start    integer not null,
    period_end      integer not null,
    version         integer not null check (version >= 1),
    pending_change  text    check (json_valid(pending_change)),
    canceled_at     integer,
    updated_at      integer not null,
    unique (workspace_id, subscription_id),
    foreign key (plan_code, plan_version) references plan_versions,
    check (period_end > period_start),
    check ((status = 'canceled') = (canceled_at is not null))
) strict, without rowid;
create index subscriptions_due on subscriptions (period_end) where status = 'active';

create table subscription_periods (
    workspace_id    blob    not null check (length(workspace_id) = 16),
    subscription_id blob    not null check (length(subscription_id) = 16),
    period_start    integer not null,
    period_end      integer not null,
    usage_seq       integer not null check (usage_seq >= 0), -- the last usage log before it
    command_id      blob    not null check (length(command_id) = 16),
    primary key (subscription_id, period_start),
    foreign key (workspace_id, subscription_id) references subscriptions (workspace_id, subscription_id)
) strict, without rowid;

-- Credits: one row per fact, changed in place -----------------------------------------------------------

create table workspace_credits (
    workspace_id        blob    primary key not null references workspaces,
    current_credits     integer not null,
    held_credits        integer not null check (held_credits >= 0),
    debt_credits        integer not null check (debt_credits >= 0),
    overdraft_limit     integer not null check (overdraft_limit >= 0),
    used_this_month     integer not null check (used_this_month >= 0),
    uncollected_credits integer not null check (uncollected_credits >= 0), -- of this period's changes of plan
    reported_limit      integer check (reported_limit >= 0), -- the soft limit that was reported in this period
    rate_window_start   integer not null,
    rate_window_used    integer not null check (rate_window_used >= 0),
    low_credit_alerts   integer not null, -- bit n: the plan's threshold n has fired
    open_holds          integer not null check (open_holds >= 0),
    version             integer not null check (version >= 0), -- the last command's seq: the optimistic lock
    ledger_seq          integer not null check (ledger_seq >= 0),
    usage_seq           integer not null check (usage_seq >= 0),
    event_seq           integer not null check (event_seq >= 0),
    updated_at          integer not null,
    constraint never_below_the_overdraft check (debt_credits <= overdraft_limit and current_credits >= -overdraft_limit)
) strict, without rowid;

-- What was used in the billing period that began at window_start. A row of an older window counts as nothing
-- used, so a reset touches none. A new kind of limit is a new scope.
create table usage_counters (
    workspace_id   blob    not null references workspaces,
    scope          text    not null check (scope = 'feature'),
    subject        text    not null, -- the feature code
    window_start   integer not null,
    used_credits   integer not null check (used_credits >= 0),
    reported_limit integer check (reported_limit >= 0), -- the soft limit that was reported in this window
    primary key (workspace_id, scope, subject)
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
    reason            text,                 -- why a caller granted it
    metadata          text,                 -- of the command that issued it
    bonus_grant_id    blob    check (length(bonus_grant_id) = 16), -- of a purchase: the grant of its bonus
    expiry_warning_at integer,              -- when to raise CreditsExpiring; null once it was raised
    created_at        integer not null,     -- recorded_at and seq of the ledger entry that issued it
    issued_seq        integer not null check (issued_seq >= 1),
    is_open           integer not null generated always as (remaining + held > 0) stored,
    primary key (workspace_id, grant_id),
    check (remaining + held <= amount),
    check ((amount_minor is null) = (currency is null))
) strict, without rowid;
create index credit_grants_open on credit_grants (workspace_id, created_at, issued_seq) where is_open;
create index credit_grants_listed on credit_grants (workspace_id, created_at, issued_seq);
create index credit_grants_expiring on credit_grants (expires_at)
    where is_open and expires_at is not null and source not in ('allowance', 'rollover');
create index credit_grants_warning on credit_grants (expiry_warning_at) where is_open and expiry_warning_at is not null;
create index credit_grants_purchases on credit_grants (workspace_id, created_at, issued_seq) where source = 'purchase';
create unique index credit_grants_payment on credit_grants (workspace_id, payment_reference)
    where payment_reference is not null and source = 'purchase';

create table credit_holds (
    workspace_id      blob    not null references workspaces,
    hold_id           blob    not null check (length(hold_id) = 16),
    feature_code      text    not null,
    user_id           text,
    amount            integer not null check (amount >= 0),
    overdraft         integer not null check (overdraft between 0 and amount), -- what of it no grant covers
    unit_price        integer check (unit_price >= 0), -- the feature's, when it was placed
    metadata          text,                          -- of the command that placed it
    command_id        blob    not null,
    state             text    not null check (state in ('open', 'captured', 'released', 'expired')),
    expires_at        integer not null,
    created_at        integer not null,          -- recorded_at of its command: no other hold of the workspace has it
    closed_at         integer,
    captured          integer not null check (captured >= 0), -- may be more than the amount
    usage_recorded_at integer,                   -- the usage log of the capture
    usage_seq         integer,
    primary key (workspace_id, hold_id),
    check ((state = 'open') = (closed_at is null)),
    check ((usage_recorded_at is null) = (usage_seq is null)),
    check (state <> 'captured' or usage_seq is not null),
    check (state in ('captured', 'expired') or usage_seq is null),
    check (usage_seq is not null or captured = 0)
) strict, without rowid;
create index credit_holds_open on credit_holds (workspace_id) where state = 'open';
create index credit_holds_expiring on credit_holds (expires_at) where state = 'open';
create index credit_holds_listed on credit_holds (workspace_id, created_at);
create index credit_holds_by_state on credit_holds (workspace_id, state, created_at);

-- What a hold reserves of each grant, in burn order. Only an open hold reserves it.
create table credit_hold_grants (
    workspace_id blob    not null,
    hold_id      blob    not null,
    position     integer not null check (position >= 0),
    grant_id     blob    not null,
    amount       integer not null check (amount > 0),
    primary key (workspace_id, hold_id, position),
    foreign key (workspace_id, hold_id) references credit_holds,
    foreign key (workspace_id, grant_id) references credit_grants
) strict, without rowid;

-- History: insert-only. All rows of a command share its recorded_at, which rises strictly within a workspace. --

-- The audit record and the stored answer: a key and its answer are remembered for ever.
create table commands (
    workspace_id    blob    not null check (length(workspace_id) = 16),
    idempotency_key text    not null,
    command_id      blob    not null check (length(command_id) = 16),
    seq             integer not null check (seq >= 1),
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

create table ledger_entries (
    workspace_id   blob    not null check (length(workspace_id) = 16),
    seq            integer not null check (seq >= 1),
    command_id     blob    not null check (length(command_id) = 16),
    debit_account  text    not null,
    credit_account text    not null,
    grant_id       blob    check (length(grant_id) = 16),
    amount         integer not null check (amount > 0),
    balance_after  integer not null,
    recorded_at    integer not null,
    effective_at   integer not null,
    primary key (workspace_id, recorded_at, seq),
    check (debit_account <> credit_account),
    check ((grant_id is not null) = (debit_account in ('grant', 'held') or credit_account in ('grant', 'held')))
) strict, without rowid;
create index ledger_entries_by_grant on ledger_entries (workspace_id, grant_id, recorded_at, seq)
    where grant_id is not null;

create table usage_logs (
    workspace_id blob    not null check (length(workspace_id) = 16),
    seq          integer not null check (seq >= 1),
    command_id   blob    not null check (length(command_id) = 16),
    feature_code text    not null,
    user_id      text,
    credits      integer not null check (credits >= 0),
    quantity     integer check (quantity > 0),
    occurred_at  integer not null,
    recorded_at  integer not null,
    metadata     text,
    primary key (workspace_id, recorded_at, seq)
) strict, without rowid;
create index usage_logs_by_feature on usage_logs (workspace_id, feature_code, recorded_at, seq);

-- What was given back of a usage log. Together it is never more than its credits.
create table usage_refunds (
    workspace_id      blob    not null check (length(workspace_id) = 16),
    usage_recorded_at integer not null,
    usage_seq         integer not null check (usage_seq >= 1),
    refund_id         blob    not null check (length(refund_id) = 16),
    credits           integer not null check (credits > 0),
    is_counted        integer not null check (is_counted in (0, 1)), -- whether the usage counters of the period fell by it
    reason            text,
    command_id        blob    not null check (length(command_id) = 16),
    recorded_at       integer not null,
    primary key (workspace_id, usage_recorded_at, usage_seq, refund_id)
) strict, without rowid;

-- What was taken back of a purchase. Together it is never more than what was bought and paid.
create table purchase_reversals (
    workspace_id  blob    not null check (length(workspace_id) = 16),
    grant_id      blob    not null check (length(grant_id) = 16), -- of the purchase
    reversal_id   blob    not null check (length(reversal_id) = 16),
    credits       integer not null check (credits >= 0), -- removed from the grant, owed and written off
    bonus_credits integer not null check (bonus_credits >= 0), -- removed from the grant of the bonus
    bonus_owed    integer not null check (bonus_owed >= 0), -- what was held of the bonus and became debt
    owed          integer not null check (owed >= 0), -- what became debt
    written_off   integer not null check (written_off >= 0),
    amount_minor  integer not null check (amount_minor >= 0),
    reason        text    not null check (reason in ('refund', 'chargeback', 'mistake')),
    command_id    blob    not null check (length(command_id) = 16),
    recorded_at   integer not null,
    primary key (workspace_id, grant_id, reversal_id),
    check (owed + written_off <= credits),
    check (credits > 0 or amount_minor > 0)
) strict, without rowid;

-- Outbox and streams -----------------------------------------------------------------------------------

-- The writers' side of a partition: its head. Every batch locks it first.
create table outbox_partitions (
    partition_id  integer primary key not null check (partition_id between 0 and 15),
    seq           integer not null check (seq >= 0),
    last_event_id blob    check (length(last_event_id) = 16),
    version       integer not null
) strict;

create table event_outbox (
    partition_id   integer not null check (partition_id between 0 and 15),
    seq            integer not null check (seq >= 1),
    event_id       blob    not null check (length(event_id) = 16),
    workspace_id   blob    not null check (length(workspace_id) = 16),
    workspace_seq  integer not null check (workspace_seq >= 1),
    event_type     text    not null,
    schema_version integer not null check (schema_version between 1 and 32767),
    recorded_at    integer not null check (recorded_at between -2208988800000000 and 253402300799999999),
    correlation_id text    not null,
    causation_id   blob    not null check (length(causation_id) = 16),
    traceparent    text,
    data           text    not null,
    primary key (partition_id, seq)
) strict;
create unique index event_outbox_workspace on event_outbox (workspace_id, workspace_seq);
create unique index event_outbox_id on event_outbox (event_id);

-- The publishers' side of a partition: apart, so that neither waits for the other.
create table stream_leases (
    partition_id integer primary key not null references outbox_partitions,
    owner        text,
    epoch        integer not null,
    leased_until integer not null,
    generation   integer not null check (generation >= 1),
    diverged_seq integer,
    -- The first event that the stream must still hold. It only rises; events before it may have been trimmed.
    floor_seq    integer not null default 1 check (floor_seq >= 1)
) strict;

with recursive numbers (n) as (select 0 union all select n + 1 from numbers where n < 15)
insert into outbox_partitions (partition_id, seq, version) select n, 0, 0 from numbers;
insert into stream_leases (partition_id, epoch, leased_until, generation)
select partition_id, 0, 0, 1 from outbox_partitions;

-- What was published, a row per batch: the outbox itself is never updated. Rows are kept for some days, and as long
-- as the stream must hold their events. A new generation begins at the floor, so what is before it counts as published.
create table stream_batches (
    partition_id integer not null check (partition_id between 0 and 15),
    generation   integer not null,
    seq_from     integer not null check (seq_from >= 1),
    seq_to       integer not null,
    published_at integer not null default (cast(round(unixepoch('subsec') * 1000) as integer) * 1000),
    primary key (partition_id, generation, seq_to),
    check (seq_to >= seq_from)
) strict, without rowid;

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
    changed_at            integer not null,
    primary key (consumer),
    check ((building_version is null) = (building_fold_version is null))
) strict, without rowid;

-- How far each build of a consumer is in a partition. Only who moves it from where it is has taken these events.
create table consumer_cursors (
    consumer      text not null references consumers,
    version       integer not null,
    partition_id  integer not null check (partition_id between 0 and 15),
    seq           integer not null check (seq >= 0), -- the last event that was taken
    last_event_id blob check (length(last_event_id) = 16),
    epoch         integer not null, -- raised when a parked workspace is tried again
    waiting_for   text, -- the type and the schema version that the next event has, and this server does not know
    updated_at    integer not null,
    primary key (consumer, version, partition_id)
) strict, without rowid;

-- Who takes the events of a partition. Leases only save work.
create table consumer_leases (
    partition_id integer not null references outbox_partitions,
    owner        text,
    leased_until integer not null,
    primary key (partition_id)
) strict, without rowid;

-- What failed for good: events that a consumer could not take, and jobs.
create table dead_letters (
    dead_letter_id  blob not null check (length(dead_letter_id) = 16),
    source          text not null check (source in ('consumer', 'job')),
    name            text not null, -- of the consumer or the queue
    version         integer, -- of the build
    workspace_id    blob check (length(workspace_id) = 16),
    partition_id    integer check (partition_id between 0 and 15),
    seq             integer,
    workspace_seq   integer,
    event_id        blob check (length(event_id) = 16),
    job_id          blob check (length(job_id) = 16),
    kind            text not null, -- the type of the event, or the kind of the job
    fingerprint     text not null, -- the same for letters with one cause
    error_class     text not null,
    error           text not null,
    attempts        integer not null check (attempts >= 1),
    first_failed_at integer not null,
    last_failed_at  integer not null,
    state           text not null check (state in ('open', 'replaying', 'resolved', 'discarded')),
    replay_id       blob check (length(replay_id) = 16), -- the act of an operator that tried it again last
    resolved_at     integer, -- since when it is neither open nor replaying
    primary key (dead_letter_id),
    constraint a_letter_of_a_consumer_names_its_event check (source <> 'consumer' or (
        version is not null and workspace_id is not null and partition_id is not null and seq is not null
        and workspace_seq is not null and event_id is not null
    )),
    constraint a_letter_of_a_job_names_its_job check ((source = 'job') = (job_id is not null))
) strict, without rowid;

create index dead_letters_by_state on dead_letters (state, last_failed_at, dead_letter_id);
create index dead_letters_of_replay on dead_letters (replay_id, state) where replay_id is not null;
create index dead_letters_of_workspace on dead_letters (source, name, version, workspace_id);
create unique index dead_letters_of_job on dead_letters (job_id) where job_id is not null;

-- Workspaces that a consumer leaves out, from the event of the dead letter on.
create table parked_workspaces (
    consumer       text not null references consumers,
    version        integer not null,
    workspace_id   blob not null check (length(workspace_id) = 16),
    partition_id   integer not null check (partition_id between 0 and 15),
    workspace_seq  integer not null check (workspace_seq >= 1), -- the next event of it to take
    dead_letter_id blob not null check (length(dead_letter_id) = 16) references dead_letters,
    since          integer not null,
    replay_at      integer, -- from when on its events are taken again; null while it waits for an operator
    primary key (consumer, version, workspace_id)
) strict, without rowid;

create index parked_workspaces_by_letter on parked_workspaces (dead_letter_id);

-- The usage of a feature by a workspace on one day, in UTC, by when it was charged.
create table usage_days (
    version      integer not null,
    workspace_id blob not null check (length(workspace_id) = 16),
    day          integer not null,
    feature_code text not null,
    partition_id integer not null check (partition_id between 0 and 15),
    credits      integer not null check (credits >= 0), -- what was charged; refunds are not taken off
    refunded     integer not null check (refunded >= 0), -- what was given back on that day
    quantity     integer not null check (quantity >= 0),
    deductions   integer not null check (deductions >= 0),
    refused      integer not null check (refused >= 0),
    primary key (version, workspace_id, day, feature_code)
) strict, without rowid;

-- The usage of a feature on a plan in one hour. The figure of the server is the sum over the partitions.
create table usage_hours (
    version      integer not null,
    partition_id integer not null check (partition_id between 0 and 15),
    hour         integer not null,
    plan_code    text not null,
    feature_code text not null,
    credits      integer not null check (credits >= 0),
    deductions   integer not null check (deductions >= 0),
    refused      integer not null check (refused >= 0),
    primary key (version, hour, plan_code, feature_code, partition_id)
) strict, without rowid;

-- Payments and workspaces of a plan on one day, in minor units of the currency. The row without a currency counts
-- workspaces.
create table revenue_days (
    version             integer not null,
    partition_id        integer not null check (partition_id between 0 and 15),
    day                 integer not null,
    plan_code           text not null,
    currency            text not null,
    purchases           integer not null check (purchases >= 0),
    credits_sold        integer not null check (credits_sold >= 0),
    paid_minor          integer not null check (paid_minor >= 0),
    returned_minor      integer not null check (returned_minor >= 0),
    recognised_minor    integer not null, -- what was earned, less what refunds of usage took back
    active_workspaces   integer not null check (active_workspaces >= 0),
    new_workspaces      integer not null check (new_workspaces >= 0),
    canceled_workspaces integer not null check (canceled_workspaces >= 0),
    primary key (version, day, currency, plan_code, partition_id)
) strict, without rowid;

-- What analytics must know of a workspace to take its next event.
create table analytics_workspaces (
    version      integer not null,
    workspace_id blob not null check (length(workspace_id) = 16),
    partition_id integer not null check (partition_id between 0 and 15),
    plan_code    text not null,
    active_day   integer, -- the last day on which it used credits
    incomplete   integer not null check (incomplete in (0, 1)), -- an operator has discarded one of its events
    primary key (version, workspace_id)
) strict, without rowid;

-- How much of each purchase was earned so far.
create table purchase_revenue (
    version          integer not null,
    workspace_id     blob not null check (length(workspace_id) = 16),
    grant_id         blob not null check (length(grant_id) = 16),
    partition_id     integer not null check (partition_id between 0 and 15),
    currency         text not null check (length(currency) = 3),
    amount_minor     integer not null check (amount_minor >= 0), -- what was paid and not given back
    credits          integer not null check (credits >= 0), -- what was bought and not reversed
    used             integer not null, -- spent, expired, or used to repay debt
    recognised_minor integer not null,
    primary key (version, workspace_id, grant_id)
) strict, without rowid;

-- What became of a workspace's credits in one period. Only the newest statement of a workspace is open.
create table statements (
    version      integer not null,
    workspace_id blob not null check (length(workspace_id) = 16),
    period_start integer not null,
    partition_id integer not null check (partition_id between 0 and 15),
    period_end   integer, -- null while there is no subscription
    plan_code    text not null,
    plan_version integer not null,
    opening      integer not null,
    granted      integer not null check (granted >= 0),
    purchased    integer not null check (purchased >= 0),
    bonus        integer not null check (bonus >= 0),
    refunded     integer not null check (refunded >= 0),
    consumed     integer not null check (consumed >= 0),
    expired      integer not null check (expired >= 0),
    removed      integer not null check (removed >= 0),
    reversed     integer not null check (reversed >= 0),
    voided       integer not null check (voided >= 0),
    unexplained  integer, -- what discarded events have moved; null until the next event tells
    closing      integer not null,
    debt_repaid  integer not null check (debt_repaid >= 0),
    rolled_over  integer not null check (rolled_over >= 0),
    first_seq    integer not null, -- the number of the first event in the workspace
    last_seq     integer not null check (last_seq >= first_seq),
    closed_at    integer, -- null while the statement is open
    sha256       blob check (length(sha256) = 32),
    primary key (version, workspace_id, period_start),
    check (closing = opening + granted + purchased + bonus + refunded - consumed - expired - removed - reversed - voided
        + unexplained),
    check ((closed_at is null) = (sha256 is null)),
    check (closed_at is null or (period_end is not null and unexplained is not null))
) strict, without rowid;

create index statements_open on statements (version, workspace_id) where closed_at is null;

-- The usage of a feature in a statement.
create table statement_lines (
    version      integer not null,
    workspace_id blob not null check (length(workspace_id) = 16),
    period_start integer not null,
    feature_code text not null,
    partition_id integer not null check (partition_id between 0 and 15),
    credits      integer not null check (credits >= 0), -- what was charged; refunds are not taken off
    refunded     integer not null check (refunded >= 0), -- what was given back in the period
    quantity     integer not null check (quantity >= 0),
    deductions   integer not null check (deductions >= 0),
    refused      integer not null check (refused >= 0),
    primary key (version, workspace_id, period_start, feature_code)
) strict, without rowid;

-- What notifications must know of a workspace to take its next event.
create table notified_workspaces (
    version      integer not null,
    workspace_id blob not null check (length(workspace_id) = 16),
    partition_id integer not null check (partition_id between 0 and 15),
    period_start integer not null,
    added_seq    integer not null, -- the event that added credits last
    is_exhausted integer not null check (is_exhausted in (0, 1)), -- whether it was told since then that credits are exhausted
    primary key (version, workspace_id)
) strict, without rowid;

-- What the people of a workspace should be told. A row never changes, and old ones can be deleted.
create table notifications (
    version         integer not null,
    workspace_id    blob not null check (length(workspace_id) = 16),
    kind            text not null check (kind in ('low_credit', 'credits_exhausted', 'limit_reached', 'credits_expiring',
        'plan_changed', 'statement_closed')),
    data            text not null check (json_valid(data)), -- the figures that a message needs, by kind
    subject         text not null check (length(subject) between 1 and 128),
    period_start    integer not null,
    partition_id    integer not null check (partition_id between 0 and 15),
    notification_id blob not null check (length(notification_id) = 16), -- made of the event's id and the kind
    event_id        blob not null check (length(event_id) = 16),
    workspace_seq   integer not null,
    created_at      integer not null, -- when the event was recorded
    primary key (version, workspace_id, kind, subject, period_start)
) strict, without rowid;

create index notifications_of_workspace on notifications (version, workspace_id, workspace_seq, notification_id);
create index notifications_of_kind on notifications (version, workspace_id, kind, workspace_seq, notification_id);
create index notifications_by_time on notifications (created_at);

insert into consumers (consumer, version, fold_version, state, changed_at)
values ('analytics', 1, 1, 'running', unixepoch() * 1000000), ('billing', 1, 1, 'running', unixepoch() * 1000000),
    ('notifications', 1, 1, 'running', unixepoch() * 1000000);
insert into consumer_cursors (consumer, version, partition_id, seq, epoch, updated_at)
select c.consumer, c.version, p.partition_id, 0, 0, unixepoch() * 1000000 from consumers c cross join outbox_partitions p;
insert into consumer_leases (partition_id, leased_until) select partition_id, 0 from outbox_partitions;

-- Queues and jobs ---------------------------------------------------------------------------------------

-- How the jobs of a queue are run. The configuration creates queues; from then on, operators change them here.
create table queues (
    queue                     text not null check (length(queue) between 1 and 64),
    weight                    integer not null check (weight between 1 and 100),
    is_paused                 integer not null check (is_paused in (0, 1)),
    max_running               integer check (max_running >= 1),
    max_running_per_workspace integer check (max_running_per_workspace >= 1),
    lease_s                   integer not null check (lease_s >= 1), -- without a heartbeat
    timeout_s                 integer not null check (timeout_s >= 1), -- of an attempt
    max_attempts              integer not null check (max_attempts >= 1),
    retry_delays_s            text not null check (json_valid(retry_delays_s)), -- after the first, second and every later attempt
    keep_done_h               integer not null check (keep_done_h >= 1),
    changed_by                text,
    changed_at                integer not null,
    primary key (queue)
) strict, without rowid;

-- Work that is not over. A job that is over is moved to jobs_done. (No foreign key to its queue: that row would be locked by every
-- new job.)
create table jobs (
    job_id              blob not null check (length(job_id) = 16),
    queue               text not null,
    kind                text not null,
    runner              text not null check (runner in ('server', 'system', 'worker')),
    workspace_id        blob check (length(workspace_id) = 16), -- null of the server's own jobs
    state               text not null check (state in ('holding', 'waiting', 'ready', 'capped', 'running', 'settling')),
    priority            integer not null check (priority between 0 and 9),
    rank                integer not null, -- the place in the queue: the lowest goes first
    run_at              integer not null, -- when it is ready, for the first time or for the next attempt
    attempt             integer not null check (attempt >= 0), -- the attempts that have begun and count
    max_attempts        integer not null check (max_attempts >= 1),
    args                text not null, -- JSON
    unique_key          text, -- only one job of a workspace and a kind has it at a time
    fingerprint         blob not null check (length(fingerprint) = 32), -- of the request
    hold                text check (json_valid(hold)), -- what a metered job reserves
    hold_id             blob check (length(hold_id) = 16),
    held_credits        integer check (held_credits >= 0),
    unit_price          integer check (unit_price >= 0), -- at which a quantity is captured
    hold_expires_at     integer,
    outcome             text check (outcome in ('completed', 'failed', 'canceled')),
    result              text, -- JSON
    actual              text check (json_valid(actual)), -- what a metered job has cost
    ended_by            blob check (length(ended_by) = 16), -- the lease of the last attempt that its worker has ended
    cancel_requested_at integer,
    error_class         text, -- of the last attempt that has failed
    error               text,
    dead_letter_id      blob check (length(dead_letter_id) = 16), -- the letter that it tries again
    replay_id           blob check (length(replay_id) = 16), -- the act of the operator who wants that
    actor               text not null,
    correlation_id      text not null,
    causation_id        blob check (length(causation_id) = 16),
    traceparent         text,
    created_at          integer not null,
    changed_at          integer not null,
    primary key (job_id),
    constraint a_metered_job_knows_its_hold check ((hold_id is null) = (held_credits is null) and (hold_id is null or hold is not null)),
    constraint a_job_is_held_or_settled_with_a_hold check (
        (state <> 'holding' or hold is not null) and (state <> 'settling' or (hold_id is not null and outcome is not null))
    ),
    constraint a_replay_names_its_letter check ((dead_letter_id is null) = (replay_id is null)),
    constraint an_error_has_a_class check ((error_class is null) = (error is null))
) strict, without rowid;

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
    job_id       blob not null check (length(job_id) = 16),
    lease_id     blob not null check (length(lease_id) = 16), -- who does not know it cannot end the job
    worker_id    blob not null check (length(worker_id) = 16),
    queue        text not null,
    workspace_id blob check (length(workspace_id) = 16),
    started_at   integer not null,
    leased_until integer not null,
    deadline     integer not null,
    progress     text, -- what the worker has told last, as JSON
    primary key (job_id)
) strict, without rowid;

-- The processes that run jobs.
create table workers (
    worker_id  blob not null check (length(worker_id) = 16),
    name       text not null,
    subject    text not null, -- of the token that has registered it: nobody else speaks for it
    runner     text not null check (runner in ('server', 'system', 'worker')),
    queues     text not null check (json_valid(queues)),
    slots      integer not null check (slots >= 1), -- how many jobs it runs at once
    labels     text, -- JSON
    version    text, -- of its program
    state      text not null check (state in ('active', 'draining', 'gone')),
    started_at integer not null,
    seen_at    integer not null, -- up to ten seconds ago while it lives
    primary key (worker_id)
) strict, without rowid;

-- Work that the server does again and again. Whoever moves next_at on sends the job.
create table schedules (
    kind       text not null, -- of its jobs
    next_at    integer not null,
    is_paused  integer not null check (is_paused in (0, 1)),
    fired_at   integer, -- the last time
    job_id     blob check (length(job_id) = 16), -- of that time
    changed_by text,
    changed_at integer not null,
    primary key (kind)
) strict, without rowid;

-- Attempts that are over, as long as their job is kept.
create table job_attempts (
    job_id      blob not null check (length(job_id) = 16),
    attempt     integer not null check (attempt >= 1),
    worker_id   blob not null check (length(worker_id) = 16),
    started_at  integer not null,
    ended_at    integer not null,
    outcome     text not null check (outcome in ('completed', 'failed', 'lost')),
    error_class text,
    error       text,
    primary key (job_id, attempt)
) strict, without rowid;

-- Jobs that are over.
create table jobs_done (
    job_id              blob not null check (length(job_id) = 16),
    queue               text not null,
    kind                text not null,
    runner              text not null check (runner in ('server', 'system', 'worker')),
    workspace_id        blob check (length(workspace_id) = 16), -- null of the server's own jobs
    state               text not null check (state in ('completed', 'failed', 'canceled', 'rejected')),
    priority            integer not null check (priority between 0 and 9),
    rank                integer not null, -- the place in the queue: the lowest goes first
    run_at              integer not null, -- when it is ready, for the first time or for the next attempt
    attempt             integer not null check (attempt >= 0), -- the attempts that have begun and count
    max_attempts        integer not null check (max_attempts >= 1),
    args                text not null, -- JSON
    unique_key          text, -- only one job of a workspace and a kind has it at a time
    fingerprint         blob not null check (length(fingerprint) = 32), -- of the request
    hold                text check (json_valid(hold)), -- what a metered job reserves
    hold_id             blob check (length(hold_id) = 16),
    held_credits        integer check (held_credits >= 0),
    unit_price          integer check (unit_price >= 0), -- at which a quantity is captured
    hold_expires_at     integer,
    outcome             text check (outcome in ('completed', 'failed', 'canceled')),
    result              text, -- JSON
    actual              text check (json_valid(actual)), -- what a metered job has cost
    ended_by            blob check (length(ended_by) = 16), -- the lease of the last attempt that its worker has ended
    cancel_requested_at integer,
    error_class         text, -- of the last attempt that has failed
    error               text,
    dead_letter_id      blob check (length(dead_letter_id) = 16), -- the letter that it tries again
    replay_id           blob check (length(replay_id) = 16), -- the act of the operator who wants that
    actor               text not null,
    correlation_id      text not null,
    causation_id        blob check (length(causation_id) = 16),
    traceparent         text,
    created_at          integer not null,
    changed_at          integer not null,
    finished_at         integer not null,
    keep_until          integer not null, -- from then on it may be deleted
    captured_credits    integer check (captured_credits >= 0),
    primary key (job_id)
) strict, without rowid;

create index jobs_done_of_workspace on jobs_done (workspace_id, created_at, job_id) where workspace_id is not null;
create index jobs_done_kept on jobs_done (keep_until, job_id);

-- What operators did by hand, and why.
create table ops_audit (
    audit_id blob not null check (length(audit_id) = 16), -- in the order of time
    at       integer not null,
    actor    text not null,
    action   text not null,
    target   text not null,
    reason   text not null,
    before   text, -- JSON
    after    text, -- JSON
    primary key (audit_id)
) strict, without rowid;

-- For analysts: whole workspaces, in credits. A question about a range filters usage_logs by recorded_at.
-- What was charged; refunds (usage_refunds) are not taken off.
create view usage_daily as
select workspace_id, date(recorded_at / 1000000, 'unixepoch') as day, feature_code,
    sum(credits) / 1e6 as credits, count(*) as deductions
from usage_logs
group by 1, 2, 3;

-- What the server's statements need ----------------------------------------------------------------------

create trigger plan_versions_refuse_update before update on plan_versions
begin select raise(abort, 'history is immutable: update on plan_versions'); end;
create trigger plan_versions_refuse_delete before delete on plan_versions
begin select raise(abort, 'history is immutable: delete on plan_versions'); end;
create trigger plan_features_refuse_update before update on plan_features
begin select raise(abort, 'history is immutable: update on plan_features'); end;
create trigger plan_features_refuse_delete before delete on plan_features
begin select raise(abort, 'history is immutable: delete on plan_features'); end;
create trigger subscription_periods_refuse_update before update on subscription_periods
begin select raise(abort, 'history is immutable: update on subscription_periods'); end;
create trigger subscription_periods_refuse_delete before delete on subscription_periods
begin select raise(abort, 'history is immutable: delete on subscription_periods'); end;
create trigger credit_hold_grants_refuse_update before update on credit_hold_grants
begin select raise(abort, 'history is immutable: update on credit_hold_grants'); end;
create trigger credit_hold_grants_refuse_delete before delete on credit_hold_grants
begin select raise(abort, 'history is immutable: delete on credit_hold_grants'); end;
create trigger commands_refuse_update before update on commands
begin select raise(abort, 'history is immutable: update on commands'); end;
create trigger commands_refuse_delete before delete on commands
begin select raise(abort, 'history is immutable: delete on commands'); end;
create trigger ledger_entries_refuse_update before update on ledger_entries
begin select raise(abort, 'history is immutable: update on ledger_entries'); end;
create trigger ledger_entries_refuse_delete before delete on ledger_entries
begin select raise(abort, 'history is immutable: delete on ledger_entries'); end;
create trigger usage_logs_refuse_update before update on usage_logs
begin select raise(abort, 'history is immutable: update on usage_logs'); end;
create trigger usage_logs_refuse_delete before delete on usage_logs
begin select raise(abort, 'history is immutable: delete on usage_logs'); end;
create trigger usage_refunds_refuse_update before update on usage_refunds
begin select raise(abort, 'history is immutable: update on usage_refunds'); end;
create trigger usage_refunds_refuse_delete before delete on usage_refunds
begin select raise(abort, 'history is immutable: delete on usage_refunds'); end;
create trigger purchase_reversals_refuse_update before update on purchase_reversals
begin select raise(abort, 'history is immutable: update on purchase_reversals'); end;
create trigger purchase_reversals_refuse_delete before delete on purchase_reversals
begin select raise(abort, 'history is immutable: delete on purchase_reversals'); end;
create trigger ops_audit_refuse_update before update on ops_audit
begin select raise(abort, 'history is immutable: update on ops_audit'); end;
create trigger ops_audit_refuse_delete before delete on ops_audit
begin select raise(abort, 'history is immutable: delete on ops_audit'); end;
create trigger event_outbox_refuse_update before update on event_outbox
begin select raise(abort, 'history is immutable: update on event_outbox'); end;
create trigger event_outbox_refuse_delete before delete on event_outbox
begin select raise(abort, 'history is immutable: delete on event_outbox'); end;
-- Statements of a build that is no longer in use can be deleted.
create trigger statements_refuse_update before update on statements when old.closed_at is not null
begin select raise(abort, 'a closed statement is immutable'); end;
create trigger statement_lines_refuse_insert before insert on statement_lines when exists (
    select 1 from statements s
    where s.version = new.version and s.workspace_id = new.workspace_id and s.period_start = new.period_start
        and s.closed_at is not null
)
begin select raise(abort, 'the lines of a closed statement are immutable'); end;
create trigger statement_lines_refuse_update before update on statement_lines when exists (
    select 1 from statements s
    where s.version = old.version and s.workspace_id = old.workspace_id and s.period_start = old.period_start
        and s.closed_at is not null
)
begin select raise(abort, 'the lines of a closed statement are immutable'); end;
create trigger statements_refuse_delete before delete on statements
when exists (select 1 from consumers c where c.consumer = 'billing' and c.version = old.version)
begin select raise(abort, 'the statements in use are kept: delete on statements'); end;
create trigger statement_lines_refuse_delete before delete on statement_lines
when exists (select 1 from consumers c where c.consumer = 'billing' and c.version = old.version)
begin select raise(abort, 'the statements in use are kept: delete on statement_lines'); end;
create trigger notifications_refuse_update before update on notifications
begin select raise(abort, 'history is immutable: update on notifications'); end;
create trigger stream_batches_refuse_update before update on stream_batches
begin select raise(abort, 'history is immutable: update on stream_batches'); end;
-- Only batches that the stream need no longer hold can be deleted.
create trigger stream_batches_refuse_delete before delete on stream_batches
when exists (
    select 1 from stream_leases l
    where l.partition_id = old.partition_id and l.generation = old.generation and l.floor_seq <= old.seq_to
)
begin select raise(abort, 'history is immutable: the stream must hold the events of this row of stream_batches'); end;
-- History names these rows.
create trigger workspaces_refuse_delete before delete on workspaces
begin select raise(abort, 'history is immutable: delete on workspaces'); end;
create trigger credit_grants_refuse_delete before delete on credit_grants
begin select raise(abort, 'history is immutable: delete on credit_grants'); end;
create trigger credit_holds_refuse_delete before delete on credit_holds
begin select raise(abort, 'history is immutable: delete on credit_holds'); end;
