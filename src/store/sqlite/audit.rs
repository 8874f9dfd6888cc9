//! The invariants of `docs/INVARIANTS.md` as statements that must return no row.
//!
//! Each returns the workspace and the event concerned, where there is one, and what is wrong. They
//! recompute every cache from history and trust nothing that the write path derived. What a
//! constraint already forbids (two commands of one key, two resets of one period, two grants of one
//! payment) is not asked again.
//!
//! `commands` has no index by its id: commands are looked up in a list that the statement makes once
//! (`not in`, a materialized subquery), never one by one.

use std::time::Duration;

use sqlx::sqlite::SqlitePool;
use uuid::Uuid;

use super::connection::limit as limit_time;
use super::error::store_error;
use super::reads::BEGIN_READING;
use super::rows::get;
use crate::domain::ids::{EventId, WorkspaceId};
use crate::store::StoreError;
use crate::store::views::AuditFinding;

/// An audit reads all of history, so it gets more time than anything else.
pub(super) const TIMEOUT: Duration = Duration::from_mins(30);

pub(super) const STATEMENTS: &[&str] = &[
    BALANCE_IS_SUM_OF_ENTRIES,
    BALANCE_AFTER_CHAINS,
    BALANCE_IS_SUM_OF_GRANTS,
    HELD_IS_SUM_OF_GRANTS,
    GRANT_IS_SUM_OF_ENTRIES,
    DEBT_IS_SUM_OF_ENTRIES,
    NEVER_BELOW_OVERDRAFT,
    FIGURES_ARE_SOUND,
    USED_IS_SUM_OF_USAGE_LOGS,
    CURRENT_IS_OF_ITS_ROWS,
    FEATURE_IS_SUM_OF_USAGE_LOGS,
    DEDUCTION_HAS_ONE_USAGE_LOG,
    USAGE_LOG_HAS_DEDUCTION,
    USAGE_LOG_IS_SUM_OF_ENTRIES,
    DEDUCTION_HAS_EVENT,
    REFUSAL_HAS_NO_ENTRY,
    REFUSAL_HAS_EVENT,
    ROW_HAS_COMMAND,
    ENTRY_NAMES_GRANT_OF_ITS_WORKSPACE,
    COMMAND_IS_OF_A_WORKSPACE,
    COMMAND_SEQ_HAS_NO_GAP,
    ROW_NAMES_THE_ONE_BEFORE,
    HISTORY_IS_IN_ORDER,
    ENTRY_SEQ_HAS_NO_GAP,
    USAGE_SEQ_HAS_NO_GAP,
    WORKSPACE_SEQ_HAS_NO_GAP,
    PARTITION_SEQ_HAS_NO_GAP,
    EVENT_IS_IN_ITS_PARTITION,
    BATCHES_HAVE_NO_GAP,
];

const INVARIANTS: &[(&str, &str)] = &[
    ("balance-is-sum-of-entries", BALANCE_IS_SUM_OF_ENTRIES),
    ("balance-after-chains", BALANCE_AFTER_CHAINS),
    ("balance-is-sum-of-grants", BALANCE_IS_SUM_OF_GRANTS),
    ("held-is-sum-of-grants", HELD_IS_SUM_OF_GRANTS),
    ("grant-is-sum-of-entries", GRANT_IS_SUM_OF_ENTRIES),
    ("debt-is-sum-of-entries", DEBT_IS_SUM_OF_ENTRIES),
    ("never-below-overdraft", NEVER_BELOW_OVERDRAFT),
    ("figures-are-sound", FIGURES_ARE_SOUND),
    ("used-is-sum-of-usage-logs", USED_IS_SUM_OF_USAGE_LOGS),
    ("current-is-of-its-rows", CURRENT_IS_OF_ITS_ROWS),
    ("feature-is-sum-of-usage-logs", FEATURE_IS_SUM_OF_USAGE_LOGS),
    ("deduction-has-one-usage-log", DEDUCTION_HAS_ONE_USAGE_LOG),
    ("usage-log-has-deduction", USAGE_LOG_HAS_DEDUCTION),
    ("usage-log-is-sum-of-entries", USAGE_LOG_IS_SUM_OF_ENTRIES),
    ("deduction-has-event", DEDUCTION_HAS_EVENT),
    ("refusal-has-no-entry", REFUSAL_HAS_NO_ENTRY),
    ("refusal-has-event", REFUSAL_HAS_EVENT),
    ("row-has-command", ROW_HAS_COMMAND),
    ("entry-names-grant-of-its-workspace", ENTRY_NAMES_GRANT_OF_ITS_WORKSPACE),
    ("command-is-of-a-workspace", COMMAND_IS_OF_A_WORKSPACE),
    ("command-seq-has-no-gap", COMMAND_SEQ_HAS_NO_GAP),
    ("row-names-the-one-before", ROW_NAMES_THE_ONE_BEFORE),
    ("history-is-in-order", HISTORY_IS_IN_ORDER),
    ("entry-seq-has-no-gap", ENTRY_SEQ_HAS_NO_GAP),
    ("usage-seq-has-no-gap", USAGE_SEQ_HAS_NO_GAP),
    ("workspace-seq-has-no-gap", WORKSPACE_SEQ_HAS_NO_GAP),
    ("partition-seq-has-no-gap", PARTITION_SEQ_HAS_NO_GAP),
    ("event-is-in-its-partition", EVENT_IS_IN_ITS_PARTITION),
    ("batches-have-no-gap", BATCHES_HAVE_NO_GAP),
];

/// Runs every invariant in one view of the database.
pub(super) async fn run(pool: &SqlitePool, limit: u32) -> Result<Vec<AuditFinding>, StoreError> {
    let mut tx = pool.begin_with(BEGIN_READING).await.map_err(store_error)?;
    limit_time(&mut tx, TIMEOUT).await.map_err(store_error)?;
    let mut findings = Vec::new();
    for (invariant, statement) in INVARIANTS {
        let statement = sqlx::query(*statement).bind(i64::from(limit));
        for row in statement.fetch_all(&mut *tx).await.map_err(store_error)? {
            findings.push(AuditFinding {
                invariant,
                workspace_id: get::<Option<Uuid>>(&row, "workspace_id")?.map(WorkspaceId),
                event_id: get::<Option<Uuid>>(&row, "event_id")?.map(EventId),
                detail: get(&row, "detail")?,
            });
        }
    }
    tx.commit().await.map_err(store_error)?;
    Ok(findings)
}

const BALANCE_IS_SUM_OF_ENTRIES: &str = "
select c.workspace_id, null as event_id,
    format('current_credits is %s, the entries say %s', c.current_credits, coalesce(e.balance, 0)) as detail
from workspace_credits c
left join (
    select workspace_id, sum(amount * ((to_account in ('grant', 'held', 'debt'))
        - (from_account in ('grant', 'held', 'debt')))) as balance
    from credit_entries group by workspace_id
) e on e.workspace_id = c.workspace_id
where c.current_credits <> coalesce(e.balance, 0)
limit ?1";

const BALANCE_AFTER_CHAINS: &str = "
select e.workspace_id, null as event_id,
    format('entry %s says %s, after %s and %s', e.seq, e.balance_after, e.balance_before, e.moved) as detail
from (
    select workspace_id, seq, balance_after,
        lag(balance_after, 1, 0) over (partition by workspace_id order by seq) as balance_before,
        amount * ((to_account in ('grant', 'held', 'debt'))
            - (from_account in ('grant', 'held', 'debt'))) as moved
    from credit_entries
) e
where e.balance_after <> e.balance_before + e.moved
limit ?1";

const BALANCE_IS_SUM_OF_GRANTS: &str = "
select c.workspace_id, null as event_id,
    format('current_credits is %s, the grants hold %s, the debt is %s', c.current_credits, coalesce(g.total, 0),
        c.debt_credits) as detail
from workspace_credits c
left join (
    select workspace_id, sum(remaining + held) as total from credit_grants_now group by workspace_id
) g on g.workspace_id = c.workspace_id
where c.current_credits <> coalesce(g.total, 0) - c.debt_credits
limit ?1";

const HELD_IS_SUM_OF_GRANTS: &str = "
select c.workspace_id, null as event_id,
    format('held_credits is %s, the grants say %s', c.held_credits, coalesce(g.held, 0)) as detail
from workspace_credits c
left join (
    select workspace_id, sum(held) as held from credit_grants_now group by workspace_id
) g on g.workspace_id = c.workspace_id
where c.held_credits <> coalesce(g.held, 0)
limit ?1";

const GRANT_IS_SUM_OF_ENTRIES: &str = "
select g.workspace_id, null as event_id,
    format('grant %s has %s remaining and %s held, the entries say %s and %s', lower(hex(g.grant_id)), g.remaining, g.held,
        coalesce(e.remaining, 0), coalesce(e.held, 0)) as detail
from credit_grants_now g
left join (
    select workspace_id, grant_id,
        sum(amount * ((to_account = 'grant') - (from_account = 'grant'))) as remaining,
        sum(amount * ((to_account = 'held') - (from_account = 'held'))) as held
    from credit_entries where grant_id is not null group by workspace_id, grant_id
) e on e.workspace_id = g.workspace_id and e.grant_id = g.grant_id
where g.remaining <> coalesce(e.remaining, 0) or g.held <> coalesce(e.held, 0)
limit ?1";

const DEBT_IS_SUM_OF_ENTRIES: &str = "
select c.workspace_id, null as event_id,
    format('debt_credits is %s, the entries say %s', c.debt_credits, coalesce(e.debt, 0)) as detail
from workspace_credits c
left join (
    select workspace_id, sum(amount * ((from_account = 'debt') - (to_account = 'debt'))) as debt
    from credit_entries where from_account = 'debt' or to_account = 'debt' group by workspace_id
) e on e.workspace_id = c.workspace_id
where c.debt_credits <> coalesce(e.debt, 0)
limit ?1";

const NEVER_BELOW_OVERDRAFT: &str = "
select workspace_id, null as event_id,
    format('the balance is %s, the debt %s, the limit %s', current_credits, debt_credits, overdraft_limit) as detail
from workspace_credits
where debt_credits > overdraft_limit or current_credits < -overdraft_limit
limit ?1";

/// What a batch writes has no constraints for this on PostgreSQL (ADR 14).
const FIGURES_ARE_SOUND: &str = "
select workspace_id, null as event_id, 'a figure of workspace_credits cannot be' as detail
from workspace_credits
where held_credits < 0 or debt_credits < 0 or overdraft_limit < 0 or used_this_month < 0 or window_used < 0
    or entry_seq < 0 or usage_seq < 0 or event_seq < 0 or rest_seq < 0 or rest_seq > command_seq
    or (current_grant_id is null) <> (current_grant_remaining is null)
    or (current_grant_id is null) <> (current_grant_held is null)
    or (current_feature_code is null) <> (current_feature_used is null)
    or (current_feature_code is null) <> (current_feature_fired is null)
    or current_grant_remaining <= 0 or current_grant_held < 0 or current_feature_used < 0
union all
select workspace_id, null, 'the fingerprint of command ' || seq || ' has another length than 32 bytes'
from commands
where length(fingerprint) <> 32
union all
select workspace_id, null, 'entry ' || seq || ' moves nothing, or names no grant, or one too many'
from credit_entries
where amount <= 0 or from_account = to_account
    or (grant_id is not null) <> (from_account in ('grant', 'held') or to_account in ('grant', 'held'))
union all
select workspace_id, null, 'a figure of usage log ' || seq || ' cannot be'
from usage_logs
where credits < 0 or quantity <= 0
limit ?1";

const USED_IS_SUM_OF_USAGE_LOGS: &str = "
with period as (
    select workspace_id, max(usage_seq) as usage_seq from credit_resets group by workspace_id
), logged as (
    select l.workspace_id, sum(l.credits) as used
    from usage_logs l
    left join period p on p.workspace_id = l.workspace_id
    where l.seq > coalesce(p.usage_seq, 0)
    group by l.workspace_id
)
select c.workspace_id, null as event_id,
    format('used_this_month is %s, the usage logs since the last reset say %s', c.used_this_month,
        coalesce(l.used, 0)) as detail
from workspace_credits c
left join logged l on l.workspace_id = c.workspace_id
where c.used_this_month <> coalesce(l.used, 0)
limit ?1";

const CURRENT_IS_OF_ITS_ROWS: &str = "
select c.workspace_id, null as event_id,
    format('the current grant is %s, the current feature %s', coalesce(lower(hex(c.current_grant_id)), 'none'),
        coalesce(c.current_feature_code, 'none')) as detail
from workspace_credits c
left join credit_grants g on g.workspace_id = c.workspace_id and g.grant_id = c.current_grant_id
left join workspace_features f on f.workspace_id = c.workspace_id and f.feature_code = c.current_feature_code
where c.current_feature_code is not null and f.feature_code is null
    or c.current_grant_id is not null and (
        g.grant_id is null or not (g.is_open = 1) or c.current_grant_remaining + c.current_grant_held > g.amount
    )
limit ?1";

const FEATURE_IS_SUM_OF_USAGE_LOGS: &str = "
with period as (
    select workspace_id, max(usage_seq) as usage_seq from credit_resets group by workspace_id
), logged as (
    select l.workspace_id, l.feature_code, sum(l.credits) as used
    from usage_logs l
    left join period p on p.workspace_id = l.workspace_id
    where l.seq > coalesce(p.usage_seq, 0)
    group by l.workspace_id, l.feature_code
)
select f.workspace_id, null as event_id,
    format('%s was used for %s, the usage logs since the last reset say %s', f.feature_code, f.used_this_month,
        coalesce(l.used, 0)) as detail
from workspace_features_now f
left join logged l on l.workspace_id = f.workspace_id and l.feature_code = f.feature_code
where f.used_this_month <> coalesce(l.used, 0)
limit ?1";

const DEDUCTION_HAS_ONE_USAGE_LOG: &str = "
select c.workspace_id, null as event_id,
    format('command %s has %s usage logs', lower(hex(c.command_id)), coalesce(u.logs, 0)) as detail
from commands c
left join (
    select workspace_id, command_id, count(*) as logs from usage_logs group by workspace_id, command_id
) u on u.workspace_id = c.workspace_id and u.command_id = c.command_id
where c.command_type = 'DeductCredits' and c.outcome = 'accepted' and coalesce(u.logs, 0) <> 1
limit ?1";

const USAGE_LOG_HAS_DEDUCTION: &str = "
select u.workspace_id, null as event_id, format('usage log %s has no accepted deduction', u.seq) as detail
from usage_logs u
where (u.workspace_id, u.command_id) not in (
    select workspace_id, command_id from commands where command_type = 'DeductCredits' and outcome = 'accepted'
)
limit ?1";

const USAGE_LOG_IS_SUM_OF_ENTRIES: &str = "
select u.workspace_id, null as event_id,
    format('usage log %s says %s, the entries %s', u.seq, u.credits, coalesce(e.consumed, 0)) as detail
from usage_logs u
left join (
    select workspace_id, command_id, to_account, sum(amount) as consumed
    from credit_entries where to_account like 'consumed:%' group by workspace_id, command_id, to_account
) e on e.workspace_id = u.workspace_id and e.command_id = u.command_id and e.to_account = 'consumed:' || u.feature_code
where u.credits <> coalesce(e.consumed, 0)
limit ?1";

const DEDUCTION_HAS_EVENT: &str = "
select c.workspace_id, null as event_id,
    format('command %s raised %s CreditConsumed', lower(hex(c.command_id)), coalesce(o.events, 0)) as detail
from commands c
left join (
    select workspace_id, causation_id, count(*) as events
    from event_outbox where event_type = 'CreditConsumed' group by workspace_id, causation_id
) o on o.workspace_id = c.workspace_id and o.causation_id = c.command_id
where c.command_type = 'DeductCredits' and c.outcome = 'accepted' and coalesce(o.events, 0) <> 1
limit ?1";

const REFUSAL_HAS_NO_ENTRY: &str = "
with refused as materialized (
    select workspace_id, command_id, outcome from commands where outcome <> 'accepted'
)
select c.workspace_id, null as event_id,
    format('command %s was refused (%s) and has entry %s', lower(hex(c.command_id)), c.outcome, e.seq) as detail
from credit_entries e
cross join refused c on c.workspace_id = e.workspace_id and c.command_id = e.command_id
limit ?1";

/// Of the refusals, those of the balance and of a limit tell their consumers.
const REFUSAL_HAS_EVENT: &str = "
select c.workspace_id, null as event_id,
    format('command %s was refused (%s) and raised %s events that say so', lower(hex(c.command_id)), c.outcome,
        coalesce(o.events, 0)) as detail
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
where c.command_type = 'DeductCredits' and c.outcome in ('insufficient-credits', 'limit-exceeded')
    and coalesce(o.events, 0) <> 1
limit ?1";

const ROW_HAS_COMMAND: &str = "
select r.workspace_id, null as event_id, format('%s %s has no command', r.what, r.seq) as detail
from (
    select 'entry' as what, workspace_id, seq, command_id from credit_entries
    union all select 'usage log', workspace_id, seq, command_id from usage_logs
    union all select 'reset', workspace_id, 0, command_id from credit_resets
    union all select 'event', workspace_id, workspace_seq, causation_id from event_outbox
) r
where (r.workspace_id, r.command_id) not in (select workspace_id, command_id from commands)
limit ?1";

const ENTRY_NAMES_GRANT_OF_ITS_WORKSPACE: &str = "
select e.workspace_id, null as event_id, format('entry %s names grant %s', e.seq, lower(hex(e.grant_id))) as detail
from credit_entries e
left join credit_grants g on g.workspace_id = e.workspace_id and g.grant_id = e.grant_id
where e.grant_id is not null and g.grant_id is null
limit ?1";

const COMMAND_IS_OF_A_WORKSPACE: &str = "
select c.workspace_id, null as event_id, format('command %s is of no workspace', lower(hex(c.command_id))) as detail
from commands c
left join workspaces w on w.workspace_id = c.workspace_id
where w.workspace_id is null
limit ?1";

/// The rows of a workspace are numbered from 1 up to its head, and no number is given twice.
macro_rules! has_no_gap {
    (of: $table:literal, seq: $seq:literal, head: $head:literal, what: $what:literal) => {
        concat!(
            "
select c.workspace_id, null as event_id,
    format('%s ",
            $what,
            " up to %s, the head is %s', coalesce(r.rows, 0), coalesce(r.last, 0), c.head) as detail
from (select workspace_id, ",
            $head,
            " as head from workspace_credits) c
left join (
    select workspace_id, count(*) as rows, count(distinct ",
            $seq,
            ") as numbers, max(",
            $seq,
            ") as last
    from ",
            $table,
            " group by workspace_id
) r on r.workspace_id = c.workspace_id
where coalesce(r.rows, 0) <> c.head or coalesce(r.last, 0) <> c.head or coalesce(r.numbers, 0) <> c.head
limit ?1"
        )
    };
}

const COMMAND_SEQ_HAS_NO_GAP: &str = has_no_gap!(of: "commands", seq: "seq", head: "command_seq", what: "commands");

/// Pages of history are read by going from row to row. (Beside a `max`, other columns are those of its row.)
const ROW_NAMES_THE_ONE_BEFORE: &str = "
select r.workspace_id, null as event_id,
    format('the %s %s names another one before it', r.what, r.seq) as detail
from (
    select 'usage log' as what, workspace_id, seq from (
        select workspace_id, seq, previous_command_id, lag(command_id) over w as before
        from usage_logs window w as (partition by workspace_id order by seq)
    ) u where u.previous_command_id is distinct from u.before
    union all
    select 'entry', workspace_id, seq from (
        select workspace_id, seq, previous_command_id, lag(command_id) over w as before
        from credit_entries window w as (partition by workspace_id order by seq)
    ) e where e.previous_command_id is distinct from e.before
    union all
    select 'event', workspace_id, workspace_seq from (
        select workspace_id, workspace_seq, previous_event_id, lag(event_id) over w as before
        from event_outbox window w as (partition by workspace_id order by workspace_seq)
    ) o where o.previous_event_id is distinct from o.before
    union all
    select 'row behind usage log', c.workspace_id, c.usage_seq
    from workspace_credits c
    left join (
        select workspace_id, max(seq), command_id from usage_logs group by workspace_id
    ) u on u.workspace_id = c.workspace_id
    where u.command_id is distinct from c.last_usage_command_id
    union all
    select 'row behind entry', c.workspace_id, c.entry_seq
    from workspace_credits c
    left join (
        select workspace_id, max(seq), command_id from credit_entries group by workspace_id
    ) e on e.workspace_id = c.workspace_id
    where e.command_id is distinct from c.last_entry_command_id
    union all
    select 'row behind event', c.workspace_id, c.event_seq
    from workspace_credits c
    left join (
        select workspace_id, max(workspace_seq), event_id from event_outbox group by workspace_id
    ) o on o.workspace_id = c.workspace_id
    where o.event_id is distinct from c.last_event_id
) r
limit ?1";

/// A range of time is found by the numbers, and consumers are promised the order of a workspace's events.
const HISTORY_IS_IN_ORDER: &str = "
select r.workspace_id, null as event_id,
    format('the %s %s comes before the one before it', r.what, r.seq) as detail
from (
    select 'usage log' as what, workspace_id, seq, recorded_at < lag(recorded_at) over w as is_early
    from usage_logs window w as (partition by workspace_id order by seq)
    union all
    select 'entry', workspace_id, seq, recorded_at < lag(recorded_at) over w
    from credit_entries window w as (partition by workspace_id order by seq)
    union all
    select 'event', workspace_id, workspace_seq, seq < lag(seq) over w
    from event_outbox window w as (partition by workspace_id order by workspace_seq)
) r
where r.is_early
limit ?1";

const ENTRY_SEQ_HAS_NO_GAP: &str = has_no_gap!(of: "credit_entries", seq: "seq", head: "entry_seq", what: "entries");

const USAGE_SEQ_HAS_NO_GAP: &str = has_no_gap!(of: "usage_logs", seq: "seq", head: "usage_seq", what: "usage logs");

const WORKSPACE_SEQ_HAS_NO_GAP: &str =
    has_no_gap!(of: "event_outbox", seq: "workspace_seq", head: "event_seq", what: "events");

const PARTITION_SEQ_HAS_NO_GAP: &str = "
select null as workspace_id, p.last_event_id as event_id,
    format('partition %s has %s events up to %s, the head is %s', p.partition, coalesce(o.rows, 0),
        coalesce(o.last, 0), p.seq) as detail
from stream_partition p
left join (
    select partition, count(*) as rows, max(seq) as last from event_outbox group by partition
) o on o.partition = p.partition
left join event_outbox e on e.partition = p.partition and e.seq = p.seq
where coalesce(o.rows, 0) <> p.seq or coalesce(o.last, 0) <> p.seq or e.event_id is distinct from p.last_event_id
limit ?1";

const EVENT_IS_IN_ITS_PARTITION: &str = "
select o.workspace_id, o.event_id,
    format('the event is in partition %s, its workspace in %s', o.partition, coalesce(w.partition, 'none')) as detail
from event_outbox o
left join workspaces w on w.workspace_id = o.workspace_id
where o.partition is distinct from w.partition
limit ?1";

const BATCHES_HAVE_NO_GAP: &str = "
select null as workspace_id, null as event_id,
    format('partition %s generation %s: the batch from %s follows %s', b.partition, b.generation, b.seq_from, b.before)
        as detail
from (
    select partition, generation, seq_from,
        lag(seq_to, 1, 0) over (partition by partition, generation order by seq_to) as before
    from stream_batch
) b
where b.seq_from <> b.before + 1
limit ?1";
