//! The invariants of usage and revenue.
//!
//! They compare what analytics has counted with history, as far as its cursors are.

/// Until when a build has taken the events of each workspace: all rows of a command share an instant. What waits behind a
/// dead letter is not taken. A workspace is left out if an event of it was discarded, or if only a part of a command's
/// events is taken.
macro_rules! taken {
    () => {
        concat!(
            builds!("analytics"),
            ", events as (
    select b.version, o.workspace_id, o.recorded_at,
        o.seq <= b.seq and (p.workspace_seq is null or o.workspace_seq < p.workspace_seq) as is_taken
    from builds b
    join event_outbox o on o.partition_id = b.partition_id
    left join parked_workspaces p
        on p.consumer = 'analytics' and p.version = b.version and p.workspace_id = o.workspace_id
), reached as (
    select version, workspace_id, max(case when is_taken then recorded_at end) as until,
        min(case when not is_taken then recorded_at end) as next_at
    from events group by version, workspace_id
), taken as (
    select r.version, r.workspace_id, r.until
    from reached r
    where (r.until is null or r.next_at is null or r.until < r.next_at) and not exists (
        select 1 from dead_letters d
        where d.source = 'consumer' and d.name = 'analytics' and d.version = r.version
            and d.workspace_id = r.workspace_id and d.state = 'discarded'
    )
)"
        )
    };
}

/// A refund counts on its own day. `{day}` is the start of the day, in UTC, on which a row `h` of history was recorded.
pub(super) const USAGE_DAYS_ARE_SUM_OF_USAGE_LOGS: &str = concat!(
    taken!(),
    ", history as (
    select workspace_id, recorded_at, feature_code, credits, 0 as refunded, 1 as deductions from usage_logs
    union all
    select r.workspace_id, r.recorded_at, l.feature_code, 0, r.credits, 0
    from usage_refunds r
    join usage_logs l on l.workspace_id = r.workspace_id and l.recorded_at = r.usage_recorded_at and l.seq = r.usage_seq
), compared as (
    select version, workspace_id, day, feature_code, credits, refunded, deductions, 0 as logged, 0 as returned, 0 as logs
    from usage_days
    union all
    select t.version, h.workspace_id, {day}, h.feature_code, 0, 0, 0, h.credits, h.refunded, h.deductions
    from history h
    cross join taken t
    where t.workspace_id = h.workspace_id and h.recorded_at <= t.until
)
select c.workspace_id, cast(null as uuid) as row_id,
    format('the day %s says %s of %s in %s deductions and %s refunded, the usage logs %s in %s and %s', c.day,
        sum(c.credits), c.feature_code, sum(c.deductions), sum(c.refunded), sum(c.logged), sum(c.logs), sum(c.returned))
        as detail
from compared c
join taken t on t.version = c.version and t.workspace_id = c.workspace_id
group by c.version, c.workspace_id, c.day, c.feature_code
having sum(c.credits) <> sum(c.logged) or sum(c.refunded) <> sum(c.returned) or sum(c.deductions) <> sum(c.logs)
limit $1"
);

/// What was paid, bought and used of a purchase is what its rows and its ledger entries say, and what was recognised is in
/// proportion. A product of two amounts is rounded here, so that proportion is checked to about one minor unit.
pub(super) const PURCHASE_REVENUE_IS_WHAT_WAS_PAID_AND_USED: &str = concat!(
    taken!(),
    ", history as (
    select workspace_id, grant_id, created_at as recorded_at, amount_minor, amount as credits, 0 as used
    from credit_grants where source = 'purchase'
    union all
    select workspace_id, grant_id, recorded_at, -amount_minor, -credits, 0 from purchase_reversals
    union all
    select e.workspace_id, e.grant_id, e.recorded_at, 0, 0,
        case when e.debit_account like 'consumed:%' then -e.amount else e.amount end
    from ledger_entries e
    cross join credit_grants g
    where g.workspace_id = e.workspace_id and g.grant_id = e.grant_id and g.source = 'purchase' and (
        e.debit_account like 'consumed:%' or e.credit_account like 'consumed:%' or e.credit_account in ('expired', 'debt')
    )
), compared as (
    select version, workspace_id, grant_id, amount_minor, credits, used, recognised_minor,
        case when credits = 0 or used >= credits then amount_minor when used <= 0 then 0
            else amount_minor * 1.0 * used / credits end as earned,
        0 as paid, 0 as bought, 0 as spent
    from purchase_revenue
    union all
    select t.version, h.workspace_id, h.grant_id, 0, 0, 0, 0, 0, h.amount_minor, h.credits, h.used
    from history h
    cross join taken t
    where t.workspace_id = h.workspace_id and h.recorded_at <= t.until
)
select c.workspace_id, c.grant_id as row_id,
    format('%s paid for %s credits, %s used and %s recognised, history says %s, %s and %s', sum(c.amount_minor),
        sum(c.credits), sum(c.used), sum(c.recognised_minor), sum(c.paid), sum(c.bought), sum(c.spent)) as detail
from compared c
join taken t on t.version = c.version and t.workspace_id = c.workspace_id
group by c.version, c.workspace_id, c.grant_id
having sum(c.amount_minor) <> sum(c.paid) or sum(c.credits) <> sum(c.bought) or sum(c.used) <> sum(c.spent)
    or sum(c.recognised_minor) > sum(c.amount_minor)
    or sum(c.recognised_minor) not between sum(c.earned) - 1.5 and sum(c.earned) + 0.5
limit $1"
);

/// What was paid and not given back is recognised or deferred: both are sums over the purchases, to the minor unit.
pub(super) const REVENUE_DAYS_ARE_SUM_OF_PURCHASES: &str = concat!(
    builds!("analytics"),
    ", compared as (
    select version, partition_id, currency, paid_minor - returned_minor as kept, recognised_minor, 0 as kept_of_purchases,
        0 as recognised_of_purchases
    from revenue_days where currency <> ''
    union all
    select version, partition_id, currency, 0, 0, amount_minor, recognised_minor from purchase_revenue
)
select cast(null as uuid) as workspace_id, cast(null as uuid) as row_id,
    format('partition %s: the days say that %s of %s were kept and %s recognised, the purchases %s and %s', c.partition_id,
        sum(c.kept), c.currency, sum(c.recognised_minor), sum(c.kept_of_purchases), sum(c.recognised_of_purchases))
        as detail
from compared c
where c.version in (select version from builds)
group by c.version, c.partition_id, c.currency
having sum(c.kept) <> sum(c.kept_of_purchases) or sum(c.recognised_minor) <> sum(c.recognised_of_purchases)
limit $1"
);
