//! The invariants of refunds and reversals.

/// The refunds of a usage log are of one that exists, and together never more than it.
pub(super) const USAGE_IS_NOT_OVER_REFUNDED: &str = "
select r.workspace_id, cast(null as uuid) as row_id,
    format('usage log %s says %s, %s were refunded', r.usage_seq, coalesce(u.credits, 0), r.refunded) as detail
from (
    select workspace_id, usage_recorded_at, usage_seq, sum(credits) as refunded
    from usage_refunds group by workspace_id, usage_recorded_at, usage_seq
) r
left join usage_logs u on u.workspace_id = r.workspace_id and u.recorded_at = r.usage_recorded_at and u.seq = r.usage_seq
where r.refunded > coalesce(u.credits, 0)
limit $1";

/// A refund is one row, entries from the account of the feature, and one event.
pub(super) const REFUND_HAS_ENTRIES_AND_EVENT: &str = "
select c.workspace_id, cast(null as uuid) as row_id,
    format('RefundUsage %s has %s refunds of %s, entries of %s, and raised %s events', c.seq, coalesce(r.refunds, 0),
        coalesce(r.credits, 0), coalesce(e.credits, 0), coalesce(o.events, 0)) as detail
from commands c
left join (
    select workspace_id, command_id, count(*) as refunds, sum(credits) as credits
    from usage_refunds group by workspace_id, command_id
) r on r.workspace_id = c.workspace_id and r.command_id = c.command_id
left join (
    select workspace_id, command_id, sum(amount) as credits
    from ledger_entries where debit_account like 'consumed:%' group by workspace_id, command_id
) e on e.workspace_id = c.workspace_id and e.command_id = c.command_id
left join (
    select workspace_id, causation_id, count(*) as events
    from event_outbox where event_type = 'CreditsRefunded' group by workspace_id, causation_id
) o on o.workspace_id = c.workspace_id and o.causation_id = c.command_id
where case when c.command_type = 'RefundUsage' and c.outcome = 'accepted'
    then coalesce(r.refunds, 0) <> 1 or coalesce(o.events, 0) <> 1 or r.credits <> coalesce(e.credits, 0)
    else r.refunds is not null or e.credits is not null or o.events is not null end
limit $1";

/// The reversals of a purchase are of one that exists, and together never more than was bought and paid.
pub(super) const PURCHASE_IS_NOT_OVER_REVERSED: &str = "
select r.workspace_id, r.grant_id as row_id,
    format('%s credits and %s in minor units were bought, %s and %s were reversed', coalesce(g.amount, 0),
        coalesce(g.amount_minor, 0), r.reversed, r.amount_minor) as detail
from (
    select workspace_id, grant_id, sum(credits) as reversed, sum(amount_minor) as amount_minor
    from purchase_reversals group by workspace_id, grant_id
) r
left join credit_grants g on g.workspace_id = r.workspace_id and g.grant_id = r.grant_id and g.source = 'purchase'
where r.reversed > coalesce(g.amount, 0) or r.amount_minor > coalesce(g.amount_minor, 0)
limit $1";

/// A reversal is one row, the entries that it says, and one event.
pub(super) const REVERSAL_HAS_ENTRIES_AND_EVENT: &str = "
select c.workspace_id, cast(null as uuid) as row_id,
    format('ReversePurchase %s has %s reversals, its entries are %s, %s owed and %s of the bonus, and it raised %s events',
        c.seq, coalesce(r.reversals, 0), coalesce(e.removed, 0), coalesce(e.owed, 0), coalesce(e.bonus, 0),
        coalesce(o.events, 0)) as detail
from commands c
left join (
    select workspace_id, command_id, count(*) as reversals, sum(credits - owed - written_off) as removed,
        sum(owed) as owed, sum(bonus_credits + bonus_owed) as bonus
    from purchase_reversals group by workspace_id, command_id
) r on r.workspace_id = c.workspace_id and r.command_id = c.command_id
left join (
    select workspace_id, command_id,
        sum(case when debit_account = 'grant' and credit_account = 'issued:purchase' then amount else 0 end) as removed,
        sum(case when debit_account = 'debt' and credit_account = 'issued:purchase' then amount else 0 end) as owed,
        sum(case when credit_account = 'issued:promotion' then amount else 0 end) as bonus
    from ledger_entries
    where debit_account in ('grant', 'debt') and credit_account in ('issued:purchase', 'issued:promotion')
    group by workspace_id, command_id
) e on e.workspace_id = c.workspace_id and e.command_id = c.command_id
left join (
    select workspace_id, causation_id, count(*) as events
    from event_outbox where event_type = 'PurchaseReversed' group by workspace_id, causation_id
) o on o.workspace_id = c.workspace_id and o.causation_id = c.command_id
where case when c.command_type = 'ReversePurchase' and c.outcome = 'accepted'
    then coalesce(r.reversals, 0) <> 1 or coalesce(o.events, 0) <> 1 or r.removed <> coalesce(e.removed, 0)
        or r.owed <> coalesce(e.owed, 0) or r.bonus <> coalesce(e.bonus, 0)
    else r.reversals is not null or o.events is not null end
limit $1";
