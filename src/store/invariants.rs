//! The invariants of `docs/INVARIANTS.md` as statements that must return no row.
//!
//! Each returns the workspace and the row concerned (an event or a grant), if there is one, and what is wrong.
//! They compute every derived figure again from history. What a constraint already forbids (a negative figure, two
//! commands of one key, two grants of one payment) is not checked again.
//!
//! These statements read whole tables. Both databases understand them. A joined subquery is grouped or distinct, so
//! that both databases evaluate it once and find its rows by hashing or an index.
//! SQLite joins in the order of a `cross join`; otherwise it may read all rows of a workspace again for each of them.

/// The builds of a consumer that are in use or being made, with their cursors. What is left of older ones is being deleted.
macro_rules! builds {
    ($consumer:literal) => {
        concat!(
            "
with builds as (
    select k.version, k.partition_id, k.seq
    from consumers c
    join consumer_cursors k on k.consumer = c.consumer and k.version in (c.version, c.building_version)
    where c.consumer = '",
            $consumer,
            "'
)"
        )
    };
}

mod figures;
mod refunds_and_reversals;
mod sequences;
mod statements;

use self::figures::{
    PURCHASE_REVENUE_IS_WHAT_WAS_PAID_AND_USED, REVENUE_DAYS_ARE_SUM_OF_PURCHASES, USAGE_DAYS_ARE_SUM_OF_USAGE_LOGS,
};
use self::refunds_and_reversals::{
    PURCHASE_IS_NOT_OVER_REVERSED, REFUND_HAS_ENTRIES_AND_EVENT, REVERSAL_HAS_ENTRIES_AND_EVENT,
    USAGE_IS_NOT_OVER_REFUNDED,
};
use self::sequences::{
    BATCHES_HAVE_NO_GAP, COMMAND_SEQ_HAS_NO_GAP, HISTORY_IS_IN_ORDER, LEDGER_SEQ_HAS_NO_GAP, PARTITION_SEQ_HAS_NO_GAP,
    USAGE_SEQ_HAS_NO_GAP, WORKSPACE_SEQ_HAS_NO_GAP,
};
use self::statements::{STATEMENT_IS_SUM_OF_USAGE_LOGS, STATEMENTS_ARE_A_CHAIN};
use super::statements::Syntax;

/// The name of each invariant and its statement; `$1` is the most findings to return.
pub(super) type Invariant = (&'static str, String);

pub(super) fn invariants<S: Syntax>() -> Vec<Invariant> {
    let day = S::start_of_day("h.recorded_at");
    INVARIANTS.iter().map(|(name, statement)| (*name, statement.replace("{day}", &day))).collect()
}

const INVARIANTS: &[(&str, &str)] = &[
    ("balance-is-sum-of-entries", BALANCE_IS_SUM_OF_ENTRIES),
    ("balance-after-chains", BALANCE_AFTER_CHAINS),
    ("balance-is-sum-of-grants", BALANCE_IS_SUM_OF_GRANTS),
    ("held-is-sum-of-open-holds", HELD_IS_SUM_OF_OPEN_HOLDS),
    ("grant-held-is-sum-of-open-holds", GRANT_HELD_IS_SUM_OF_OPEN_HOLDS),
    ("hold-is-sum-of-its-grants", HOLD_IS_SUM_OF_ITS_GRANTS),
    ("capture-has-usage-log", CAPTURE_HAS_USAGE_LOG),
    ("holding-has-hold-and-event", HOLDING_HAS_HOLD_AND_EVENT),
    ("release-has-event", RELEASE_HAS_EVENT),
    ("grant-is-sum-of-entries", GRANT_IS_SUM_OF_ENTRIES),
    ("debt-is-sum-of-entries", DEBT_IS_SUM_OF_ENTRIES),
    ("used-is-sum-of-usage-logs", USED_IS_SUM_OF_USAGE_LOGS),
    ("counter-is-sum-of-usage-logs", COUNTER_IS_SUM_OF_USAGE_LOGS),
    ("usage-has-counter", USAGE_HAS_COUNTER),
    ("deduction-has-one-usage-log", DEDUCTION_HAS_ONE_USAGE_LOG),
    ("usage-log-has-deduction", USAGE_LOG_HAS_DEDUCTION),
    ("usage-log-is-sum-of-entries", USAGE_LOG_IS_SUM_OF_ENTRIES),
    ("deduction-has-event", DEDUCTION_HAS_EVENT),
    ("granting-has-entry-and-event", GRANTING_HAS_ENTRY_AND_EVENT),
    ("usage-is-not-over-refunded", USAGE_IS_NOT_OVER_REFUNDED),
    ("refund-has-entries-and-event", REFUND_HAS_ENTRIES_AND_EVENT),
    ("purchase-is-not-over-reversed", PURCHASE_IS_NOT_OVER_REVERSED),
    ("reversal-has-entries-and-event", REVERSAL_HAS_ENTRIES_AND_EVENT),
    ("statements-are-a-chain", STATEMENTS_ARE_A_CHAIN),
    ("statement-is-sum-of-usage-logs", STATEMENT_IS_SUM_OF_USAGE_LOGS),
    ("usage-days-are-sum-of-usage-logs", USAGE_DAYS_ARE_SUM_OF_USAGE_LOGS),
    ("purchase-revenue-is-what-was-paid-and-used", PURCHASE_REVENUE_IS_WHAT_WAS_PAID_AND_USED),
    ("revenue-days-are-sum-of-purchases", REVENUE_DAYS_ARE_SUM_OF_PURCHASES),
    ("refusal-has-no-entry", REFUSAL_HAS_NO_ENTRY),
    ("refusal-has-event", REFUSAL_HAS_EVENT),
    ("row-has-command", ROW_HAS_COMMAND),
    ("entry-names-grant-of-its-workspace", ENTRY_NAMES_GRANT_OF_ITS_WORKSPACE),
    ("command-is-of-a-workspace", COMMAND_IS_OF_A_WORKSPACE),
    ("command-seq-has-no-gap", COMMAND_SEQ_HAS_NO_GAP),
    ("ledger-seq-has-no-gap", LEDGER_SEQ_HAS_NO_GAP),
    ("usage-seq-has-no-gap", USAGE_SEQ_HAS_NO_GAP),
    ("workspace-seq-has-no-gap", WORKSPACE_SEQ_HAS_NO_GAP),
    ("history-is-in-order", HISTORY_IS_IN_ORDER),
    ("partition-seq-has-no-gap", PARTITION_SEQ_HAS_NO_GAP),
    ("event-is-in-its-partition", EVENT_IS_IN_ITS_PARTITION),
    ("batches-have-no-gap", BATCHES_HAVE_NO_GAP),
];

/// The change that an entry makes to the accounts of these kinds.
macro_rules! change_of {
    ($($account:literal),+) => {
        concat!(
            "(case when credit_account in (", change_of!(@list $($account),+), ") then amount else 0 end",
            " - case when debit_account in (", change_of!(@list $($account),+), ") then amount else 0 end)"
        )
    };
    (@list $first:literal $(, $more:literal)*) => {
        concat!("'", $first, "'" $(, ", '", $more, "'")*)
    };
}

const BALANCE_IS_SUM_OF_ENTRIES: &str = concat!(
    "
select c.workspace_id, cast(null as uuid) as row_id,
    format('current_credits is %s, the entries say %s', c.current_credits, coalesce(e.balance, 0)) as detail
from workspace_credits c
left join (
    select workspace_id, sum(",
    change_of!("grant", "held", "debt"),
    ") as balance from ledger_entries group by workspace_id
) e on e.workspace_id = c.workspace_id
where c.current_credits <> coalesce(e.balance, 0)
limit $1"
);

const BALANCE_AFTER_CHAINS: &str = concat!(
    "
select e.workspace_id, cast(null as uuid) as row_id,
    format('entry %s says %s, after %s and %s', e.seq, e.balance_after, e.balance_before, e.moved) as detail
from (
    select workspace_id, seq, balance_after,
        lag(balance_after, 1, 0) over (partition by workspace_id order by seq) as balance_before, ",
    change_of!("grant", "held", "debt"),
    " as moved
    from ledger_entries
) e
where e.balance_after <> e.balance_before + e.moved
limit $1"
);

const BALANCE_IS_SUM_OF_GRANTS: &str = "
select c.workspace_id, cast(null as uuid) as row_id,
    format('current_credits is %s, the grants hold %s, the debt is %s', c.current_credits, coalesce(g.total, 0),
        c.debt_credits) as detail
from workspace_credits c
left join (
    select workspace_id, sum(remaining + held) as total from credit_grants group by workspace_id
) g on g.workspace_id = c.workspace_id
where c.current_credits <> coalesce(g.total, 0) - c.debt_credits
limit $1";

const HELD_IS_SUM_OF_OPEN_HOLDS: &str = "
select c.workspace_id, cast(null as uuid) as row_id,
    format('held_credits is %s in %s holds, the open holds are %s and reserve %s', c.held_credits, c.open_holds,
        coalesce(h.holds, 0), coalesce(h.held, 0)) as detail
from workspace_credits c
left join (
    select workspace_id, count(*) as holds, sum(amount) as held from credit_holds where state = 'open' group by workspace_id
) h on h.workspace_id = c.workspace_id
where c.held_credits <> coalesce(h.held, 0) or c.open_holds <> coalesce(h.holds, 0)
limit $1";

const GRANT_HELD_IS_SUM_OF_OPEN_HOLDS: &str = "
select g.workspace_id, g.grant_id as row_id,
    format('the grant has %s held, the open holds reserve %s of it', g.held, coalesce(h.held, 0)) as detail
from credit_grants g
left join (
    select s.workspace_id, s.grant_id, sum(s.amount) as held
    from credit_hold_grants s
    join credit_holds h on h.workspace_id = s.workspace_id and h.hold_id = s.hold_id
    where h.state = 'open' group by s.workspace_id, s.grant_id
) h on h.workspace_id = g.workspace_id and h.grant_id = g.grant_id
where g.held <> coalesce(h.held, 0)
limit $1";

/// What a hold reserves of grants is an entry each.
const HOLD_IS_SUM_OF_ITS_GRANTS: &str = "
select h.workspace_id, h.hold_id as row_id,
    format('the hold is %s with %s of the overdraft, its grants say %s, the entries %s', h.amount, h.overdraft,
        coalesce(s.amount, 0), coalesce(e.amount, 0)) as detail
from credit_holds h
left join (
    select workspace_id, hold_id, sum(amount) as amount from credit_hold_grants group by workspace_id, hold_id
) s on s.workspace_id = h.workspace_id and s.hold_id = h.hold_id
left join (
    select workspace_id, command_id, sum(amount) as amount
    from ledger_entries where credit_account = 'held' group by workspace_id, command_id
) e on e.workspace_id = h.workspace_id and e.command_id = h.command_id
where h.amount - h.overdraft <> coalesce(s.amount, 0) or h.amount - h.overdraft <> coalesce(e.amount, 0)
limit $1";

const CAPTURE_HAS_USAGE_LOG: &str = "
select h.workspace_id, h.hold_id as row_id,
    format('the hold was captured for %s, its usage log says %s', h.captured, coalesce(u.credits, -1)) as detail
from credit_holds h
left join usage_logs u on u.workspace_id = h.workspace_id and u.recorded_at = h.usage_recorded_at and u.seq = h.usage_seq
where h.usage_seq is not null and (u.credits is distinct from h.captured or u.feature_code is distinct from h.feature_code)
limit $1";

const HOLDING_HAS_HOLD_AND_EVENT: &str = "
select c.workspace_id, cast(null as uuid) as row_id,
    format('command %s has %s holds and raised %s CreditsHeld', c.seq, coalesce(h.holds, 0), coalesce(o.events, 0))
        as detail
from commands c
left join (
    select workspace_id, command_id, count(*) as holds from credit_holds group by workspace_id, command_id
) h on h.workspace_id = c.workspace_id and h.command_id = c.command_id
left join (
    select workspace_id, causation_id, count(*) as events
    from event_outbox where event_type = 'CreditsHeld' group by workspace_id, causation_id
) o on o.workspace_id = c.workspace_id and o.causation_id = c.command_id
where c.command_type = 'PlaceHold' and c.outcome = 'accepted'
    and (coalesce(h.holds, 0) <> 1 or coalesce(o.events, 0) <> 1)
limit $1";

const RELEASE_HAS_EVENT: &str = "
select c.workspace_id, cast(null as uuid) as row_id,
    format('%s holds were released or expired, and %s HoldReleased were raised', coalesce(h.holds, 0),
        coalesce(o.events, 0)) as detail
from workspace_credits c
left join (
    select workspace_id, count(*) as holds from credit_holds where state in ('released', 'expired') group by workspace_id
) h on h.workspace_id = c.workspace_id
left join (
    select workspace_id, count(*) as events from event_outbox where event_type = 'HoldReleased' group by workspace_id
) o on o.workspace_id = c.workspace_id
where coalesce(h.holds, 0) <> coalesce(o.events, 0)
limit $1";

const GRANT_IS_SUM_OF_ENTRIES: &str = concat!(
    "
select g.workspace_id, g.grant_id as row_id,
    format('the grant has %s remaining and %s held, the entries say %s and %s', g.remaining, g.held,
        coalesce(e.remaining, 0), coalesce(e.held, 0)) as detail
from credit_grants g
left join (
    select workspace_id, grant_id, sum(",
    change_of!("grant"),
    ") as remaining, sum(",
    change_of!("held"),
    ") as held
    from ledger_entries where grant_id is not null group by workspace_id, grant_id
) e on e.workspace_id = g.workspace_id and e.grant_id = g.grant_id
where g.remaining <> coalesce(e.remaining, 0) or g.held <> coalesce(e.held, 0)
limit $1"
);

const DEBT_IS_SUM_OF_ENTRIES: &str = concat!(
    "
select c.workspace_id, cast(null as uuid) as row_id,
    format('debt_credits is %s, the entries say %s', c.debt_credits, coalesce(e.debt, 0)) as detail
from workspace_credits c
left join (
    select workspace_id, -sum(",
    change_of!("debt"),
    ") as debt
    from ledger_entries where debit_account = 'debt' or credit_account = 'debt' group by workspace_id
) e on e.workspace_id = c.workspace_id
where c.debt_credits <> coalesce(e.debt, 0)
limit $1"
);

const USED_IS_SUM_OF_USAGE_LOGS: &str = "
with current_period as (
    select workspace_id, max(usage_seq) as usage_seq from subscription_periods group by workspace_id
), logged as (
    select l.workspace_id, sum(l.credits) as used
    from usage_logs l
    left join current_period p on p.workspace_id = l.workspace_id
    where l.seq > coalesce(p.usage_seq, 0)
    group by l.workspace_id
), refunded as (
    select r.workspace_id, sum(r.credits) as credits
    from usage_refunds r
    left join current_period p on p.workspace_id = r.workspace_id
    where r.is_counted and r.usage_seq > coalesce(p.usage_seq, 0)
    group by r.workspace_id
)
select c.workspace_id, cast(null as uuid) as row_id,
    format('used_this_month is %s, the usage logs of the period say %s, less %s refunded', c.used_this_month,
        coalesce(l.used, 0), coalesce(r.credits, 0)) as detail
from workspace_credits c
left join logged l on l.workspace_id = c.workspace_id
left join refunded r on r.workspace_id = c.workspace_id
where c.used_this_month <> coalesce(l.used, 0) - coalesce(r.credits, 0)
limit $1";

/// Each counter counts the period that its window names, which may be over. A refund is counted in the period of its usage.
const COUNTER_IS_SUM_OF_USAGE_LOGS: &str = "
with periods as (
    select workspace_id, period_start, usage_seq,
        lead(usage_seq) over (partition by workspace_id order by period_start) as next_usage_seq
    from subscription_periods
), counted as (
    select p.* from periods p
    join (select distinct workspace_id, window_start from usage_counters) w
        on w.workspace_id = p.workspace_id and w.window_start = p.period_start
), refunded as (
    select workspace_id, usage_recorded_at, usage_seq, sum(credits) as credits
    from usage_refunds where is_counted group by workspace_id, usage_recorded_at, usage_seq
), logged as (
    select l.workspace_id, p.period_start, l.feature_code, sum(l.credits - coalesce(r.credits, 0)) as used
    from usage_logs l
    join counted p on p.workspace_id = l.workspace_id
    left join refunded r
        on r.workspace_id = l.workspace_id and r.usage_recorded_at = l.recorded_at and r.usage_seq = l.seq
    where l.seq > p.usage_seq and (p.next_usage_seq is null or l.seq <= p.next_usage_seq)
    group by l.workspace_id, p.period_start, l.feature_code
)
select c.workspace_id, cast(null as uuid) as row_id,
    format('the counter of %s says %s, the usage logs of its window less refunds %s', c.subject, c.used_credits,
        coalesce(l.used, 0)) as detail
from usage_counters c
left join logged l
    on l.workspace_id = c.workspace_id and l.period_start = c.window_start and l.feature_code = c.subject
where c.used_credits <> coalesce(l.used, 0)
limit $1";

const USAGE_HAS_COUNTER: &str = "
with current_period as (
    select workspace_id, max(usage_seq) as usage_seq from subscription_periods group by workspace_id
)
select l.workspace_id, cast(null as uuid) as row_id,
    format('%s was used in the period, and no counter counts it', l.feature_code) as detail
from usage_logs l
join current_period p on p.workspace_id = l.workspace_id
join subscriptions s on s.workspace_id = l.workspace_id
left join usage_counters c on c.workspace_id = l.workspace_id and c.scope = 'feature' and c.subject = l.feature_code
    and c.window_start = s.period_start
where l.seq > p.usage_seq and c.subject is null
group by l.workspace_id, l.feature_code
limit $1";

const DEDUCTION_HAS_ONE_USAGE_LOG: &str = "
select c.workspace_id, cast(null as uuid) as row_id,
    format('command %s has %s usage logs', c.seq, coalesce(u.logs, 0)) as detail
from commands c
left join (
    select workspace_id, command_id, count(*) as logs from usage_logs group by workspace_id, command_id
) u on u.workspace_id = c.workspace_id and u.command_id = c.command_id
where c.command_type in ('DeductCredits', 'CaptureHold') and c.outcome = 'accepted' and coalesce(u.logs, 0) <> 1
limit $1";

const USAGE_LOG_HAS_DEDUCTION: &str = "
select u.workspace_id, cast(null as uuid) as row_id, format('usage log %s has no accepted deduction or capture', u.seq) as detail
from usage_logs u
left join (
    select distinct workspace_id, command_id
    from commands where command_type in ('DeductCredits', 'CaptureHold') and outcome = 'accepted'
) c on c.workspace_id = u.workspace_id and c.command_id = u.command_id
where c.command_id is null
limit $1";

const USAGE_LOG_IS_SUM_OF_ENTRIES: &str = "
select u.workspace_id, cast(null as uuid) as row_id,
    format('usage log %s says %s, the entries %s', u.seq, u.credits, coalesce(e.consumed, 0)) as detail
from usage_logs u
left join (
    select workspace_id, command_id, credit_account, sum(amount) as consumed
    from ledger_entries where credit_account like 'consumed:%' group by workspace_id, command_id, credit_account
) e on e.workspace_id = u.workspace_id and e.command_id = u.command_id
    and e.credit_account = 'consumed:' || u.feature_code
where u.credits <> coalesce(e.consumed, 0)
limit $1";

const DEDUCTION_HAS_EVENT: &str = "
select c.workspace_id, cast(null as uuid) as row_id,
    format('command %s raised %s CreditConsumed', c.seq, coalesce(o.events, 0)) as detail
from commands c
left join (
    select workspace_id, causation_id, count(*) as events
    from event_outbox where event_type = 'CreditConsumed' group by workspace_id, causation_id
) o on o.workspace_id = c.workspace_id and o.causation_id = c.command_id
where c.command_type in ('DeductCredits', 'CaptureHold') and c.outcome = 'accepted' and coalesce(o.events, 0) <> 1
limit $1";

/// What was granted or voided is one entry from or to the account of its source, and one event.
const GRANTING_HAS_ENTRY_AND_EVENT: &str = "
select c.workspace_id, cast(null as uuid) as row_id,
    format('%s %s has %s entries and raised %s events', c.command_type, c.seq, coalesce(e.entries, 0),
        coalesce(o.events, 0)) as detail
from commands c
left join (
    select workspace_id, command_id,
        case when debit_account = 'grant' then 'VoidGrant' else 'GrantCredits' end as command_type, count(*) as entries
    from ledger_entries
    where debit_account in ('issued:promotion', 'issued:adjustment')
        or credit_account in ('issued:promotion', 'issued:adjustment')
    group by workspace_id, command_id, case when debit_account = 'grant' then 'VoidGrant' else 'GrantCredits' end
) e on e.workspace_id = c.workspace_id and e.command_id = c.command_id and e.command_type = c.command_type
left join (
    select workspace_id, causation_id, event_type, count(*) as events
    from event_outbox where event_type in ('CreditsGranted', 'GrantVoided')
    group by workspace_id, causation_id, event_type
) o on o.workspace_id = c.workspace_id and o.causation_id = c.command_id
    and o.event_type = case c.command_type when 'VoidGrant' then 'GrantVoided' else 'CreditsGranted' end
where c.command_type in ('GrantCredits', 'VoidGrant') and c.outcome = 'accepted'
    and (coalesce(e.entries, 0) <> 1 or coalesce(o.events, 0) <> 1)
limit $1";

const REFUSAL_HAS_NO_ENTRY: &str = "
select c.workspace_id, cast(null as uuid) as row_id,
    format('command %s was refused (%s) and has %s entries', c.seq, c.outcome, e.entries) as detail
from commands c
join (
    select workspace_id, command_id, count(*) as entries from ledger_entries group by workspace_id, command_id
) e on e.workspace_id = c.workspace_id and e.command_id = c.command_id
where c.outcome <> 'accepted'
limit $1";

/// Of the refusals, those of the balance and of a limit tell their consumers.
const REFUSAL_HAS_EVENT: &str = "
select c.workspace_id, cast(null as uuid) as row_id,
    format('command %s was refused (%s) and raised %s events that say so', c.seq, c.outcome, coalesce(o.events, 0))
        as detail
from commands c
left join (
    select workspace_id, causation_id, event_type, count(*) as events
    from event_outbox
    where event_type in ('CreditLimitExceeded', 'UsageLimitExceeded')
    group by workspace_id, causation_id, event_type
) o on o.workspace_id = c.workspace_id and o.causation_id = c.command_id
    and o.event_type = case c.outcome
        when 'insufficient-credits' then 'CreditLimitExceeded'
        else 'UsageLimitExceeded'
    end
where c.command_type in ('DeductCredits', 'PlaceHold', 'CaptureHold')
    and c.outcome in ('insufficient-credits', 'limit-exceeded')
    and coalesce(o.events, 0) <> 1
limit $1";

/// A row of history is recorded at the same instant as its command.
const ROW_HAS_COMMAND: &str = "
select r.workspace_id, cast(null as uuid) as row_id,
    format('%s %s has no command that was recorded with it', r.what, r.seq) as detail
from (
    select 'entry' as what, workspace_id, seq, command_id, recorded_at from ledger_entries
    union all select 'usage log', workspace_id, seq, command_id, recorded_at from usage_logs
    union all select 'period after usage log', workspace_id, usage_seq, command_id, null from subscription_periods
    union all select 'refund of usage log', workspace_id, usage_seq, command_id, recorded_at from usage_refunds
    union all select 'reversal of', workspace_id, amount_minor, command_id, recorded_at from purchase_reversals
    union all select 'event', workspace_id, workspace_seq, causation_id, recorded_at from event_outbox
) r
left join (
    select distinct workspace_id, command_id, recorded_at from commands
) c on c.workspace_id = r.workspace_id and c.command_id = r.command_id
    and c.recorded_at = coalesce(r.recorded_at, c.recorded_at)
where c.command_id is null
limit $1";

const ENTRY_NAMES_GRANT_OF_ITS_WORKSPACE: &str = "
select e.workspace_id, e.grant_id as row_id, format('entry %s names a grant of no or another workspace', e.seq) as detail
from ledger_entries e
left join credit_grants g on g.workspace_id = e.workspace_id and g.grant_id = e.grant_id
where e.grant_id is not null and g.grant_id is null
limit $1";

const COMMAND_IS_OF_A_WORKSPACE: &str = "
select c.workspace_id, cast(null as uuid) as row_id, format('command %s is of no workspace', c.seq) as detail
from commands c
left join workspaces w on w.workspace_id = c.workspace_id
where w.workspace_id is null
limit $1";

const EVENT_IS_IN_ITS_PARTITION: &str = "
select o.workspace_id, o.event_id as row_id,
    format('the event is in partition %s, its workspace in %s', o.partition_id, coalesce(w.partition_id, -1)) as detail
from event_outbox o
left join workspaces w on w.workspace_id = o.workspace_id
where o.partition_id is distinct from w.partition_id
limit $1";

#[cfg(test)]
mod tests {
    use super::INVARIANTS;

    #[test]
    fn the_page_on_invariants_names_every_check() {
        let page = include_str!("../../docs/INVARIANTS.md");
        for (name, _) in INVARIANTS {
            assert_eq!(page.matches(&format!("`{name}`")).count(), 1, "{name}");
        }
    }
}
