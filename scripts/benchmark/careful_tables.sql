-- The tables of the second baseline: 10,000 workspaces with credits, their usage logs, and an outbox.
create table credits (
    workspace_id uuid primary key,
    balance bigint not null check (balance >= 0),
    used_this_month bigint not null,
    updated_at timestamptz not null
) with (fillfactor = 50); -- room for new versions of a row in its page, so that no index has to change
create table usage_logs (
    id bigint generated always as identity primary key,
    workspace_id uuid not null,
    feature_code text not null,
    user_id text not null,
    amount bigint not null,
    balance_after bigint not null,
    recorded_at timestamptz not null
);
create index usage_logs_of_workspace on usage_logs (workspace_id, recorded_at);
create table outbox (
    id bigint generated always as identity primary key,
    workspace_id uuid not null,
    event_type text not null,
    payload json not null,
    recorded_at timestamptz not null
);
insert into credits
select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 100000000000000, 0, now()
from generate_series(1, 10000) n;
