-- The second baseline, for pgbench: a deduction as a careful team writes it. It takes the credits only if there
-- are enough (\gset fails otherwise), keeps a usage log, and leaves an event for a publisher, in one transaction.
-- pgbench has no uuids, so the id is made from a number in the statement; that costs about a microsecond.
\set n random(1, 10000)
\set amount 250000
begin;
update credits
set balance = balance - :amount, used_this_month = used_this_month + :amount, updated_at = now()
where workspace_id = ('00000000-0000-4000-8000-' || lpad(:n, 12, '0'))::uuid and balance >= :amount
returning workspace_id as id, balance \gset
insert into usage_logs (workspace_id, feature_code, user_id, amount, balance_after, recorded_at)
values (:id, 'text.generate', 'user-7', :amount, :balance, now());
insert into outbox (workspace_id, event_type, payload, recorded_at)
values (:id, 'CreditConsumed', json_build_object('workspace_id', :id::text, 'feature_code', 'text.generate',
    'user_id', 'user-7', 'credits', :amount::bigint, 'balance', :balance::bigint), now());
commit;
