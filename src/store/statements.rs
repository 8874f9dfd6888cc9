//! The statements that both databases share: the look-ups of a batch, and the lists of the API and the scheduler.
//!
//! Placeholders are `$1`, `$2` … in both. A list of keys is a `from` item named `k`, which each database writes in its
//! own way; it always comes first, and a statement with one has no other parameter. A page is one range of the index
//! that begins with what is filtered by: pages go by the key of the last row seen, never by offset.

use super::columns::Kind;
use super::plan_rows::{PlanFeatureRow, PlanVersionRow};
use super::tables::Table;
use crate::domain::cloud_event::EventRecord;
use crate::domain::command_record::CommandRecord;
use crate::domain::counter::UsageCounter;
use crate::domain::grant::Grant;
use crate::domain::hold::{HeldShare, Hold};
use crate::domain::ledger::LedgerEntry;
use crate::domain::subscription::Subscription;
use crate::domain::usage::UsageLog;
use crate::domain::workspace::{FeatureOverride, Workspace, WorkspaceCredits};

/// The name and the kind of one column of a key.
pub(super) type KeyColumn = (&'static str, Kind);

const WORKSPACE: &[KeyColumn] = &[("workspace_id", Kind::Uuid)];
const COMMAND: &[KeyColumn] = &[("workspace_id", Kind::Uuid), ("idempotency_key", Kind::Text)];
const PAYMENT: &[KeyColumn] = &[("workspace_id", Kind::Uuid), ("payment_reference", Kind::Text)];
const WORKSPACE_VERSION: &[KeyColumn] = &[("workspace_id", Kind::Uuid), ("version", Kind::Bigint)];
const PLAN: &[KeyColumn] = &[("plan_code", Kind::Text)];
const PLAN_VERSION: &[KeyColumn] = &[("plan_code", Kind::Text), ("version", Kind::Integer)];
const OFFERED_PLAN: &[KeyColumn] = &[("plan_code", Kind::Text), ("retired_at", Kind::Timestamptz)];
const FEATURE: &[KeyColumn] = &[("feature_code", Kind::Text)];
const GRANT: &[KeyColumn] = &[("workspace_id", Kind::Uuid), ("grant_id", Kind::Uuid)];
const HOLD: &[KeyColumn] = &[("workspace_id", Kind::Uuid), ("hold_id", Kind::Uuid)];
const RECORDED: &[KeyColumn] = &[("workspace_id", Kind::Uuid), ("recorded_at", Kind::Timestamptz)];
const USAGE: &[KeyColumn] = &[("workspace_id", Kind::Uuid), ("recorded_at", Kind::Timestamptz), ("seq", Kind::Bigint)];
const SETTING: &[KeyColumn] = &[("name", Kind::Text), ("value", Kind::Text)];

/// The parts of a shared statement that each database writes in its own way.
pub(super) trait Syntax {
    /// A list of keys as a `from` item named `k`.
    fn key_list(key: &[KeyColumn]) -> String;

    /// A hint for the planner to use the index.
    fn indexed_by(index: &str) -> String;

    /// The start of the day, in UTC, of an instant.
    fn start_of_day(column: &str) -> String;

    /// What locks the rows `t` that a query finds, at its end.
    fn lock(lock: Lock) -> &'static str;
}

/// Whom a query keeps from changing the rows that it finds, until its transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    None,
    /// All others may still read and share them.
    Share,
    /// This transaction will change them.
    Change,
    /// Like `Change`, without those that another transaction has locked.
    ChangeFree,
}

#[derive(Debug)]
pub(super) struct Statement {
    pub(super) text: String,
    /// The columns of the keys that it looks up. A list has none: it has parameters.
    pub(super) key: &'static [KeyColumn],
    /// The index that finds the rows, by its name in PostgreSQL. Empty if a small table is read whole.
    pub(super) index: &'static str,
}

/// Declares a set of statements by their names.
macro_rules! statements {
    ($(#[$doc:meta])* $set:ident: $($name:ident),+) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $set {
            $(pub(super) $name: Statement),+
        }

        impl $set {
            /// Each text and its index, for tests.
            pub(super) fn all(&self) -> Vec<(&str, &'static str)> {
                vec![$((self.$name.text.as_str(), self.$name.index)),+]
            }
        }
    };
}

pub(super) use statements;

statements! {
    /// The statements as one database writes them.
    Statements:
    commands, workspaces, overrides, counters, open_grants, stale, payments, plans, versions, features, offer_plans,
    retire_others, existing_features, keep_setting, setting, offered_plans, usage_asc, usage_desc, usage_of_feature_asc, usage_of_feature_desc, ledger_asc,
    ledger_desc, ledger_of_grant_asc, ledger_of_grant_desc, last_entry, usage_log, events_of_workspace, event, due_boundaries,
    due_expiries, due_warnings, purchases_asc, purchases_desc, purchase, grants, grants_asc, grants_desc,
    open_grants_asc, open_grants_desc, closed_grants_asc, closed_grants_desc, open_holds, holds, held_shares, holds_asc,
    holds_desc, holds_by_state_asc, holds_by_state_desc, due_holds, usages, usage_shares, reversible_purchases
}

const STALE: &str = "
select c.workspace_id from {keys} cross join workspace_credits c
where c.workspace_id = k.workspace_id and c.version <> k.version";

const PAYMENTS: &str = "
select g.workspace_id, g.payment_reference, g.grant_id from {keys} cross join credit_grants g {index}
where g.workspace_id = k.workspace_id and g.payment_reference = k.payment_reference
    and g.payment_reference is not null and g.source = 'purchase'";

const PLANS: &str = "
select p.plan_code, (select max(v.version) from plan_versions v where v.plan_code = p.plan_code), p.retired_at is null
from {keys} cross join plans p where p.plan_code = k.plan_code";

/// Locks the rows, so that replicas that start at once store new versions one after the other.
const OFFER_PLANS: &str = "
insert into plans (plan_code, source) select distinct k.plan_code, 'file' from {keys} where true order by 1
on conflict (plan_code) do update set retired_at = null";

const EXISTING_FEATURES: &str = "
select k.feature_code from {keys}
where exists (select 1 from plan_features f {index} where f.feature_code = k.feature_code)";

const KEEP_SETTING: &str = "
insert into settings (name, value) select k.name, k.value from {keys} where true on conflict (name) do nothing";

const STORED_SETTING: &str = "select s.value from {keys} cross join settings s where s.name = k.name";

const RETIRE_OTHERS: &str = "
update plans set retired_at = (select max(k.retired_at) from {keys})
where source = 'file' and retired_at is null and plan_code not in (select k.plan_code from {keys})";

const OFFERED_PLANS: &str = "
select v.plan_code, max(v.version) from plan_versions v join plans p on p.plan_code = v.plan_code
where p.retired_at is null group by v.plan_code";

const DUE_BOUNDARIES: &str = "
select workspace_id, subscription_id, period_end from subscriptions
where status = 'active' and period_end <= $1 order by period_end limit $2";

/// The inner limit bounds the rows read, the outer one the rows returned.
const DUE_EXPIRIES: &str = "
select workspace_id from (
    select workspace_id, expires_at from credit_grants
    where is_open and expires_at is not null and expires_at <= $1 and source not in ('allowance', 'rollover')
        and remaining > 0
    order by expires_at limit $2
) expired
group by workspace_id order by min(expires_at) limit $3";

const DUE_WARNINGS: &str = "
select workspace_id from (
    select workspace_id, expiry_warning_at from credit_grants
    where is_open and expiry_warning_at is not null and expiry_warning_at <= $1 and remaining > 0 and expires_at > $1
    order by expiry_warning_at limit $2
) due
group by workspace_id order by min(expiry_warning_at) limit $3";

const DUE_HOLDS: &str = "
select workspace_id from (
    select workspace_id, expires_at from credit_holds where state = 'open' and expires_at <= $1
    order by expires_at limit $2
) expired
group by workspace_id order by min(expires_at) limit $3";

impl Statements {
    pub(super) fn new<S: Syntax>() -> Self {
        Self {
            commands: by_key::<S, CommandRecord>(COMMAND, "commands_pkey", ""),
            workspaces: lookup::<S>(WORKSPACE, "workspaces_pkey", &workspaces()),
            overrides: by_key::<S, FeatureOverride>(WORKSPACE, "workspace_feature_overrides_pkey", ""),
            counters: by_key::<S, UsageCounter>(WORKSPACE, "usage_counters_pkey", ""),
            open_grants: by_key::<S, Grant>(WORKSPACE, "credit_grants_open", "and t.is_open"),
            stale: lookup::<S>(WORKSPACE_VERSION, "workspace_credits_pkey", STALE),
            payments: lookup::<S>(PAYMENT, "credit_grants_payment", PAYMENTS),
            plans: lookup::<S>(PLAN, "plans_pkey", PLANS),
            versions: by_key::<S, PlanVersionRow>(PLAN_VERSION, "plan_versions_pkey", ""),
            features: by_key::<S, PlanFeatureRow>(PLAN_VERSION, "plan_features_pkey", ""),
            offer_plans: lookup::<S>(PLAN, "", OFFER_PLANS),
            existing_features: lookup::<S>(FEATURE, "plan_features_by_code", EXISTING_FEATURES),
            keep_setting: lookup::<S>(SETTING, "", KEEP_SETTING),
            setting: lookup::<S>(SETTING, "", STORED_SETTING),
            retire_others: lookup::<S>(OFFERED_PLAN, "", RETIRE_OTHERS),
            offered_plans: list("", OFFERED_PLANS),
            usage_asc: page::<S, UsageLog>("usage_logs_pkey", "", "asc"),
            usage_desc: page::<S, UsageLog>("usage_logs_pkey", "", "desc"),
            usage_of_feature_asc: page::<S, UsageLog>("usage_logs_by_feature", "and t.feature_code = $7", "asc"),
            usage_of_feature_desc: page::<S, UsageLog>("usage_logs_by_feature", "and t.feature_code = $7", "desc"),
            ledger_asc: page::<S, LedgerEntry>("ledger_entries_pkey", "", "asc"),
            ledger_desc: page::<S, LedgerEntry>("ledger_entries_pkey", "", "desc"),
            ledger_of_grant_asc: page::<S, LedgerEntry>("ledger_entries_by_grant", "and t.grant_id = $7", "asc"),
            ledger_of_grant_desc: page::<S, LedgerEntry>("ledger_entries_by_grant", "and t.grant_id = $7", "desc"),
            last_entry: of::<S, LedgerEntry>(
                "ledger_entries_pkey",
                "t.workspace_id = $1 and t.recorded_at <= $2 order by t.recorded_at desc, t.seq desc limit 1",
            ),
            usage_log: of::<S, UsageLog>(
                "usage_logs_pkey",
                "t.workspace_id = $1 and t.recorded_at = $2 and t.seq = $3",
            ),
            events_of_workspace: of::<S, EventRecord>(
                "event_outbox_workspace",
                "t.workspace_id = $1 and t.workspace_seq > $2 order by t.workspace_seq limit $3",
            ),
            event: of::<S, EventRecord>(
                "event_outbox_id",
                "t.event_id = $1 and (cast($2 as uuid) is null or t.workspace_id = $2)",
            ),
            due_boundaries: list("subscriptions_due", DUE_BOUNDARIES),
            due_expiries: list("credit_grants_expiring", DUE_EXPIRIES),
            due_warnings: list("credit_grants_warning", DUE_WARNINGS),
            purchases_asc: grants::<S>("credit_grants_purchases", PURCHASED, "asc"),
            purchases_desc: grants::<S>("credit_grants_purchases", PURCHASED, "desc"),
            purchase: of::<S, Grant>(
                "credit_grants_payment",
                "t.workspace_id = $1 and t.payment_reference = $2 and t.payment_reference is not null and t.source = 'purchase'",
            ),
            grants: by_key::<S, Grant>(GRANT, "credit_grants_pkey", ""),
            grants_asc: grants::<S>("credit_grants_listed", "", "asc"),
            grants_desc: grants::<S>("credit_grants_listed", "", "desc"),
            open_grants_asc: grants::<S>("credit_grants_open", OPEN, "asc"),
            open_grants_desc: grants::<S>("credit_grants_open", OPEN, "desc"),
            closed_grants_asc: grants::<S>("credit_grants_listed", CLOSED, "asc"),
            closed_grants_desc: grants::<S>("credit_grants_listed", CLOSED, "desc"),
            open_holds: by_key::<S, Hold>(WORKSPACE, "credit_holds_open", "and t.state = 'open'"),
            holds: by_key::<S, Hold>(HOLD, "credit_holds_pkey", ""),
            held_shares: by_key::<S, HeldShare>(HOLD, "credit_hold_grants_pkey", ""),
            holds_asc: holds::<S>("credit_holds_listed", "", "asc"),
            holds_desc: holds::<S>("credit_holds_listed", "", "desc"),
            holds_by_state_asc: holds::<S>("credit_holds_by_state", "and t.state = $7", "asc"),
            holds_by_state_desc: holds::<S>("credit_holds_by_state", "and t.state = $7", "desc"),
            due_holds: list("credit_holds_expiring", DUE_HOLDS),
            usages: lookup::<S>(USAGE, "usage_logs_pkey", &usages()),
            usage_shares: by_key::<S, LedgerEntry>(RECORDED, "ledger_entries_pkey", CONSUMED),
            reversible_purchases: reversible_purchases::<S>(),
        }
    }
}

pub(super) fn list(index: &'static str, text: &str) -> Statement {
    Statement { text: text.to_owned(), key: &[], index }
}

pub(super) fn lookup<S: Syntax>(key: &'static [KeyColumn], index: &'static str, text: &str) -> Statement {
    let text = text.replace("{keys}", &S::key_list(key)).replace("{index}", &hint::<S>(index));
    Statement { text, key, index }
}

/// A primary key is used without a hint.
pub(super) fn hint<S: Syntax>(index: &str) -> String {
    if index.ends_with("_pkey") { String::new() } else { S::indexed_by(index) }
}

fn workspaces() -> String {
    let (workspaces, credits) = (Workspace::select("w"), WorkspaceCredits::select("c"));
    format!(
        "select {workspaces}, {credits}, {} from {{keys}} cross join workspaces w
join workspace_credits c on c.workspace_id = w.workspace_id
join subscriptions s on s.workspace_id = w.workspace_id
where w.workspace_id = k.workspace_id",
        Subscription::select("s")
    )
}

/// The entries of a deduction or a capture that say what it took. Each command has an instant of its own.
const CONSUMED: &str = "and t.credit_account like 'consumed:%'";

/// Usage logs to refund, what was refunded of each, and whether it counts in the current period.
fn usages() -> String {
    format!(
        "select {}, cast(coalesce((
        select sum(r.credits) from usage_refunds r
        where r.workspace_id = u.workspace_id and r.usage_recorded_at = u.recorded_at and r.usage_seq = u.seq
    ), 0) as bigint), u.seq > p.usage_seq
from {{keys}} cross join usage_logs u
join subscriptions s on s.workspace_id = u.workspace_id
join subscription_periods p on p.subscription_id = s.subscription_id and p.period_start = s.period_start
where u.workspace_id = k.workspace_id and u.recorded_at = k.recorded_at and u.seq = k.seq",
        UsageLog::select("u")
    )
}

/// Purchases to reverse, and other grants of these ids: the source and the bonus of each, what was reversed of it, and
/// what has expired. Nothing expires before the expiry of its grant, so the entries of years of spending are not read.
const REVERSIBLE_PURCHASES: &str = "
select g.workspace_id, g.grant_id, g.source, g.bonus_grant_id,
    cast(coalesce((
        select sum(r.credits) from purchase_reversals r where r.workspace_id = g.workspace_id and r.grant_id = g.grant_id
    ), 0) as bigint),
    cast(coalesce((
        select sum(r.amount_minor) from purchase_reversals r
        where r.workspace_id = g.workspace_id and r.grant_id = g.grant_id
    ), 0) as bigint),
    cast(coalesce((
        select sum(e.amount) from ledger_entries e {by_grant}
        where e.workspace_id = g.workspace_id and e.grant_id = g.grant_id and e.grant_id is not null
            and e.recorded_at >= g.expires_at and e.credit_account = 'expired'
    ), 0) as bigint)
from {keys} cross join credit_grants g
where g.workspace_id = k.workspace_id and g.grant_id = k.grant_id";

fn reversible_purchases<S: Syntax>() -> Statement {
    let text = REVERSIBLE_PURCHASES.replace("{by_grant}", &S::indexed_by("ledger_entries_by_grant"));
    lookup::<S>(GRANT, "credit_grants_pkey", &text)
}

/// The rows of a table that have one of the keys.
pub(super) fn by_key<S: Syntax, T: Table>(key: &'static [KeyColumn], index: &'static str, filter: &str) -> Statement {
    let (columns, table) = (T::select("t"), T::NAME);
    let is_key: Vec<_> = key.iter().map(|(name, _)| format!("t.{name} = k.{name}")).collect();
    let is_key = is_key.join(" and ");
    let text = format!("select {columns} from {{keys}} cross join {table} t {{index}} where {is_key} {filter}");
    lookup::<S>(key, index, &text)
}

/// The rows `t` of a table.
fn of<S: Syntax, T: Table>(index: &'static str, filter: &str) -> Statement {
    list(index, &format!("select {} from {} t {} where {filter}", T::select("t"), T::NAME, hint::<S>(index)))
}

const PURCHASED: &str = "and t.source = 'purchase'";
/// At $7. An expiry that is not recorded yet counts, so that a page skips no more grants than a workspace may have open.
const OPEN: &str = "and t.is_open and (t.expires_at is null or t.expires_at > $7 or t.held > 0)";
const CLOSED: &str = "and (not t.is_open or (t.expires_at <= $7 and t.held = 0))";

/// A page of a workspace's grants, with the parameters of [`page`].
fn grants<S: Syntax>(index: &'static str, filter: &str, order: &str) -> Statement {
    let filter = format!(
        "t.workspace_id = $1 and (t.created_at, t.issued_seq) > ($2, $3) and (t.created_at, t.issued_seq) < ($4, $5)
    {filter} order by t.created_at {order}, t.issued_seq {order} limit $6"
    );
    of::<S, Grant>(index, &filter)
}

/// A page of a workspace's holds, with the parameters of [`page`]. Each was recorded at another instant, so its number is
/// always 1.
fn holds<S: Syntax>(index: &'static str, filter: &str, order: &str) -> Statement {
    let filter = format!(
        "t.workspace_id = $1 and t.created_at >= $2 and t.created_at <= $4
    and (t.created_at, 1) > ($2, $3) and (t.created_at, 1) < ($4, $5) {filter} order by t.created_at {order} limit $6"
    );
    of::<S, Hold>(index, &filter)
}

/// A page of a workspace ($1) between two positions ($2, $3) and ($4, $5), of at most $6 rows.
fn page<S: Syntax, T: Table>(index: &'static str, filter: &str, order: &str) -> Statement {
    let filter = format!(
        "t.workspace_id = $1 and (t.recorded_at, t.seq) > ($2, $3) and (t.recorded_at, t.seq) < ($4, $5) {filter}
order by t.recorded_at {order}, t.seq {order} limit $6"
    );
    of::<S, T>(index, &filter)
}
