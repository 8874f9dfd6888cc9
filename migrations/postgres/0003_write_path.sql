-- What a batch writes, and in what shape.

-- A deduction mostly moves the same grant and the same feature as the one before it. What it moves is kept
-- in the workspace's row, so that it writes one row and not three; the rows of their own have what was true
-- before they became current. The views say what is true now.
alter table workspace_credits
    add current_grant_id        uuid,
    add current_grant_remaining bigint,
    add current_grant_held      bigint,
    add current_feature_code    text,
    add current_feature_used    bigint,
    add current_feature_fired   boolean,
    add constraint current_grant_is_whole check (
        num_nonnulls(current_grant_id, current_grant_remaining, current_grant_held) in (0, 3)
        and coalesce(current_grant_remaining > 0 and current_grant_held >= 0, true)
    ),
    add constraint current_feature_is_whole check (
        num_nonnulls(current_feature_code, current_feature_used, current_feature_fired) in (0, 3)
        and coalesce(current_feature_used >= 0, true)
    );

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

-- The rows that the write statement takes: an array of one type for each table, instead of an array for
-- each column. Setting out eighty arrays row by row cost as much as a sixth of writing them.
-- They belong to the statement and not to the tables, so that a table may get another column while
-- servers of an earlier version still write.

create type head_row as (
    partition     smallint,
    seq           bigint,
    last_event_id uuid,
    version       bigint
);

create type credits_row as (
    workspace_id        uuid,
    current_credits     bigint,
    held_credits        bigint,
    debt_credits        bigint,
    overdraft_limit     bigint,
    used_this_month     bigint,
    entry_seq           bigint,
    usage_seq           bigint,
    event_seq           bigint,
    low_credit_fired    smallint,
    monthly_limit_fired boolean,
    window_start        timestamptz,
    window_used         bigint,
    updated_at          timestamptz,
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
    recorded_at     timestamptz
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
