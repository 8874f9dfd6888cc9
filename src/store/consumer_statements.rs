//! The statements of the consumers and of their figures, which both databases share.

use super::columns::Kind;
use super::statements::{KeyColumn, Statement, Syntax, by_key, hint, list, lookup, statements};
use super::tables::Table;
use crate::domain::consumers::{
    Notification, NotifiedWorkspace, PurchaseRevenue, Statement as PeriodStatement, StatementLine, WorkspaceActivity,
};
use crate::domain::dead_letter::{DeadLetter, ParkedWorkspace};
use crate::domain::operator_act::OperatorAct;

const BUILD: &[KeyColumn] = &[("consumer", Kind::Text), ("version", Kind::Integer)];
const CURSOR: &[KeyColumn] = &[
    ("consumer", Kind::Text),
    ("version", Kind::Integer),
    ("partition_id", Kind::Smallint),
    ("seq", Kind::Bigint),
    ("epoch", Kind::Bigint),
    ("seq_to", Kind::Bigint),
    ("epoch_to", Kind::Bigint),
    ("last_event_id", Kind::Uuid),
    ("waiting_for", Kind::Text),
    ("updated_at", Kind::Timestamptz),
];
const PARKED: &[KeyColumn] = &[("consumer", Kind::Text), ("version", Kind::Integer), ("workspace_id", Kind::Uuid)];
const DEAD_LETTER: &[KeyColumn] = &[("dead_letter_id", Kind::Uuid)];
const CHANGED_LETTER: &[KeyColumn] = &[
    ("dead_letter_id", Kind::Uuid),
    ("state", Kind::Text),
    ("replay_id", Kind::Uuid),
    ("resolved_at", Kind::Timestamptz),
];
const TRIED_WORKSPACE: &[KeyColumn] = &[("dead_letter_id", Kind::Uuid), ("replay_at", Kind::Timestamptz)];
const NEW_BUILD: &[KeyColumn] =
    &[("consumer", Kind::Text), ("version", Kind::Integer), ("updated_at", Kind::Timestamptz)];
const CHANGE: &[KeyColumn] = &[
    ("consumer", Kind::Text),
    ("version", Kind::Integer),
    ("before", Kind::Timestamptz),
    ("state", Kind::Text),
    ("reason", Kind::Text),
    ("changed_by", Kind::Text),
    ("changed_at", Kind::Timestamptz),
    ("building_version", Kind::Integer),
    ("building_fold_version", Kind::Integer),
];
const TRIPPED: &[KeyColumn] =
    &[("consumer", Kind::Text), ("reason", Kind::Text), ("changed_by", Kind::Text), ("changed_at", Kind::Timestamptz)];
const OF_WORKSPACE: &[KeyColumn] = &[("version", Kind::Integer), ("workspace_id", Kind::Uuid)];
const OF_PERIOD: &[KeyColumn] =
    &[("version", Kind::Integer), ("workspace_id", Kind::Uuid), ("period_start", Kind::Timestamptz)];
const OF_GRANT: &[KeyColumn] = &[("version", Kind::Integer), ("workspace_id", Kind::Uuid), ("grant_id", Kind::Uuid)];

statements! {
    /// The statements of the consumers, as one database writes them.
    ConsumerStatements:
    consumers, consumer_cursors, parked_workspaces, discarded_events, waiting_since, free_workspaces, dead_letter, advance_cursors, switch_consumer, trip_consumer, activities, revenues,
    consumer_positions, change_consumer, start_build, operator_acts, operator_act, dead_letters, dead_letter_groups,
    change_letters, try_workspaces, replay_progress,
    open_statements, open_statement_lines, closed_in_use, delete_lines, statement_page, statement, statement_lines,
    notified_workspaces, notification_page, notification_page_of_kind,
    as_of, event_seq, usage_by_day_and_feature, usage_by_day, usage_by_feature, usage_in_total
}

const CONSUMERS: &str = "
select consumer, version, fold_version, building_version, building_fold_version, state, reason, changed_by, changed_at
from consumers order by consumer";

const CONSUMER_CURSORS: &str = "
select consumer, version, partition_id, seq, last_event_id, epoch, waiting_for, updated_at from consumer_cursors";

/// Of a consumer ($1), a partition ($2) and a workspace in it ($3).
const AS_OF: &str = "
select c.version, k.seq,
    (select o.recorded_at from event_outbox o where o.partition_id = $2 and o.seq > k.seq order by o.seq limit 1),
    exists (
        select 1 from parked_workspaces p
        where p.consumer = $1 and p.version = c.version and p.workspace_id = $3
    ),
    exists (
        select 1 from dead_letters d
        where d.source = 'consumer' and d.name = $1 and d.version = c.version and d.workspace_id = $3
            and d.state = 'discarded'
    )
from consumers c
join consumer_cursors k on k.consumer = c.consumer and k.version = c.version and k.partition_id = $2
where c.consumer = $1";

/// Moves each cursor that is where the fold began. A row for each that has moved.
const ADVANCE_CURSORS: &str = "
update consumer_cursors as c
set seq = k.seq_to, epoch = k.epoch_to, last_event_id = k.last_event_id, waiting_for = k.waiting_for, updated_at = k.updated_at
from {keys}
where c.consumer = k.consumer and c.version = k.version and c.partition_id = k.partition_id and c.seq = k.seq
    and c.epoch = k.epoch
returning 1";

/// Few, because an operator discards each by hand.
const DISCARDED_EVENTS: &str =
    "select name, event_id from dead_letters where source = 'consumer' and state = 'discarded'";

/// Numbers have no gaps.
const WAITING_SINCE: &str = "
select c.consumer, min(o.recorded_at)
from consumers c
join consumer_cursors k on k.consumer = c.consumer and k.version = c.version
join event_outbox o on o.partition_id = k.partition_id and o.seq = k.seq + 1
group by c.consumer";

const FREE_WORKSPACES: &str = "
delete from parked_workspaces where (consumer, version, workspace_id) in (
    select k.consumer, k.version, k.workspace_id from {keys}
)
returning 1";

/// Every cursor, with the head of its partition and what waits there.
const CONSUMER_POSITIONS: &str = "
select c.consumer, c.version, c.partition_id, c.seq, c.last_event_id, c.epoch, c.waiting_for, c.updated_at, p.seq,
    (
        select o.recorded_at from event_outbox o where o.partition_id = c.partition_id and o.seq > c.seq
        order by o.seq limit 1
    ),
    l.owner, l.leased_until
from consumer_cursors c
join outbox_partitions p on p.partition_id = c.partition_id
join consumer_leases l on l.partition_id = c.partition_id";

const CHANGE_CONSUMER: &str = "
update consumers as c
set state = k.state, reason = k.reason, changed_by = k.changed_by, changed_at = k.changed_at,
    building_version = k.building_version, building_fold_version = k.building_fold_version
from {keys}
where c.consumer = k.consumer and c.version = k.version and c.changed_at = k.before
returning 1";

/// Its cursors begin before the first event.
const START_BUILD: &str = "
insert into consumer_cursors (consumer, version, partition_id, seq, epoch, updated_at)
select k.consumer, k.version, p.partition_id, 0, 0, k.updated_at from {keys} cross join outbox_partitions p
returning 1";

/// A dead letter of a job, or of a build that is read or made.
const IN_USE: &str = "(t.source = 'job' or exists (
        select 1 from consumers c where c.consumer = t.name and t.version in (c.version, c.building_version)
    ))";

const DEAD_LETTER_GROUPS: &str = "
select fingerprint, min(source), min(name), min(kind), min(error_class), min(error), count(*), min(first_failed_at),
    max(last_failed_at)
from dead_letters t
where state = $1 and {in_use}
group by fingerprint
order by count(*) desc, fingerprint limit $2";

/// The letters are found by their keys: the empty text keeps the index by state out of it.
const CHANGE_LETTERS: &str = "
update dead_letters as t
set state = k.state, replay_id = k.replay_id, resolved_at = k.resolved_at
from {keys}
where t.dead_letter_id = k.dead_letter_id and t.state || '' = 'open'
returning 1";

const TRY_WORKSPACES: &str = "
update parked_workspaces as p
set replay_at = k.replay_at
from {keys}
where p.dead_letter_id = k.dead_letter_id
returning 1";

const REPLAY_PROGRESS: &str = "select state, count(*) from dead_letters where replay_id = $1 group by state";

const SWITCH_CONSUMER: &str = "
update consumers as c
set version = c.building_version, fold_version = c.building_fold_version, building_version = null,
    building_fold_version = null
from {keys}
where c.consumer = k.consumer and c.building_version = k.version
returning 1";

const TRIP_CONSUMER: &str = "
update consumers as c
set state = 'tripped', reason = k.reason, changed_by = k.changed_by, changed_at = k.changed_at
from {keys}
where c.consumer = k.consumer and c.state = 'running'
returning 1";

/// The lines of statements of a build that is made.
const DELETE_LINES: &str = "
delete from statement_lines where (version, workspace_id, period_start) in (
    select k.version, k.workspace_id, k.period_start from {keys}
)
returning 1";

impl ConsumerStatements {
    pub(super) fn new<S: Syntax>() -> Self {
        Self {
            consumers: list("", CONSUMERS),
            consumer_cursors: list("", CONSUMER_CURSORS),
            parked_workspaces: list("", &format!("select {} from parked_workspaces t", ParkedWorkspace::select("t"))),
            discarded_events: list("", DISCARDED_EVENTS),
            waiting_since: list("", WAITING_SINCE),
            free_workspaces: lookup::<S>(PARKED, "parked_workspaces_pkey", FREE_WORKSPACES),
            dead_letter: by_key::<S, DeadLetter>(DEAD_LETTER, "dead_letters_pkey", &format!("and {IN_USE}")),
            advance_cursors: lookup::<S>(CURSOR, "consumer_cursors_pkey", ADVANCE_CURSORS),
            switch_consumer: lookup::<S>(BUILD, "consumers_pkey", SWITCH_CONSUMER),
            trip_consumer: lookup::<S>(TRIPPED, "consumers_pkey", TRIP_CONSUMER),
            activities: by_key::<S, WorkspaceActivity>(OF_WORKSPACE, "analytics_workspaces_pkey", ""),
            revenues: by_key::<S, PurchaseRevenue>(OF_GRANT, "purchase_revenue_pkey", ""),
            consumer_positions: list("", CONSUMER_POSITIONS),
            change_consumer: lookup::<S>(CHANGE, "consumers_pkey", CHANGE_CONSUMER),
            start_build: lookup::<S>(NEW_BUILD, "", START_BUILD),
            operator_acts: operator_acts("t.audit_id <= $1 order by t.audit_id desc limit $2"),
            operator_act: operator_acts("t.audit_id = $1"),
            dead_letters: dead_letters::<S>(),
            change_letters: lookup::<S>(CHANGED_LETTER, "dead_letters_pkey", CHANGE_LETTERS),
            try_workspaces: lookup::<S>(TRIED_WORKSPACE, "parked_workspaces_by_letter", TRY_WORKSPACES),
            replay_progress: list("dead_letters_of_replay", REPLAY_PROGRESS),
            dead_letter_groups: list("dead_letters_by_state", &DEAD_LETTER_GROUPS.replace("{in_use}", IN_USE)),
            open_statements: by_key::<S, PeriodStatement>(OF_WORKSPACE, "statements_open", "and t.closed_at is null"),
            open_statement_lines: lookup::<S>(
                OF_WORKSPACE,
                "statements_open",
                &format!(
                    "select {} from {{keys}} cross join statements s {{index}} cross join statement_lines t
where s.version = k.version and s.workspace_id = k.workspace_id and s.closed_at is null
    and t.version = s.version and t.workspace_id = s.workspace_id and t.period_start = s.period_start",
                    StatementLine::select("t")
                ),
            ),
            closed_in_use: closed_in_use::<S>(),
            delete_lines: lookup::<S>(OF_PERIOD, "statement_lines_pkey", DELETE_LINES),
            statement_page: of_build::<PeriodStatement>(
                "statements_pkey",
                "and t.period_start <= $3 order by t.period_start desc limit $4",
            ),
            statement: of_build::<PeriodStatement>("statements_pkey", "and t.period_start = $3"),
            statement_lines: of_build::<StatementLine>("statement_lines_pkey", "and t.period_start = $3"),
            notified_workspaces: by_key::<S, NotifiedWorkspace>(OF_WORKSPACE, "notified_workspaces_pkey", ""),
            notification_page: notifications::<S>("notifications_of_workspace", ""),
            notification_page_of_kind: notifications::<S>("notifications_of_kind", "and t.kind = $6"),
            as_of: list("consumer_cursors_pkey", AS_OF),
            event_seq: list(
                "event_outbox_workspace",
                &format!(
                    "select t.seq from event_outbox t {} where t.workspace_id = $1 and t.workspace_seq = $2",
                    hint::<S>("event_outbox_workspace")
                ),
            ),
            usage_by_day_and_feature: usage_figures(
                "u.day, u.feature_code, u.credits, u.refunded, u.quantity, u.deductions, u.refused",
                "and (u.day, u.feature_code) >= ($6, $7) order by u.day, u.feature_code",
            ),
            usage_by_day: usage_sums("u.day, null", "and u.day >= $6 group by u.day order by u.day"),
            usage_by_feature: usage_sums(
                "null, u.feature_code",
                "and u.feature_code >= $6 group by u.feature_code order by u.feature_code",
            ),
            usage_in_total: usage_sums("null, null", ""),
        }
    }
}

/// The statements that the build in use has closed, of the periods of a build that is made.
fn closed_in_use<S: Syntax>() -> Statement {
    let text = format!(
        "select {} from {{keys}} cross join consumers c cross join statements t
where c.consumer = 'billing' and c.version < k.version and t.version = c.version and t.workspace_id = k.workspace_id
    and t.period_start = k.period_start and t.closed_at is not null",
        PeriodStatement::select("t")
    );
    lookup::<S>(OF_PERIOD, "statements_pkey", &text)
}

fn operator_acts(filter: &str) -> Statement {
    list("ops_audit_pkey", &format!("select {} from ops_audit t where {filter}", OperatorAct::select("t")))
}

/// In a state ($1), the one that failed last first, from a place on ($2, $3): at most $4, and only those that match $5, $6, $7 and
/// $8, if they are not null.
fn dead_letters<S: Syntax>() -> Statement {
    let (columns, hint) = (DeadLetter::select("t"), hint::<S>("dead_letters_by_state"));
    let text = format!(
        "select {columns} from dead_letters t {hint}
where t.state = $1 and (t.last_failed_at, t.dead_letter_id) <= ($2, $3)
    and (cast($5 as text) is null or t.source = $5) and (cast($6 as text) is null or t.name = $6)
    and (cast($7 as text) is null or t.fingerprint = $7) and (cast($8 as uuid) is null or t.workspace_id = $8)
    and {IN_USE}
order by t.last_failed_at desc, t.dead_letter_id desc limit $4"
    );
    list("dead_letters_by_state", &text)
}

/// Rows of a build ($1) and a workspace ($2).
fn of_build<T: Table>(index: &'static str, filter: &str) -> Statement {
    let (columns, table) = (T::select("t"), T::NAME);
    let text = format!("select {columns} from {table} t where t.version = $1 and t.workspace_id = $2 {filter}");
    list(index, &text)
}

/// Notifications of a build ($1) and a workspace ($2) from a position ($3, $4) on, the newest first: at most $5 rows.
fn notifications<S: Syntax>(index: &'static str, filter: &str) -> Statement {
    let (columns, hint) = (Notification::select("t"), hint::<S>(index));
    let text = format!(
        "select {columns} from notifications t {hint} where t.version = $1 and t.workspace_id = $2
    and (t.workspace_seq, t.notification_id) <= ($3, $4) {filter}
order by t.workspace_seq desc, t.notification_id desc limit $5"
    );
    list(index, &text)
}

/// Usage of a build ($1) and a workspace ($2) on days from $3 to before $4: at most $5 rows.
fn usage_figures(columns: &str, rest: &str) -> Statement {
    let text = format!(
        "select {columns} from usage_days u
where u.version = $1 and u.workspace_id = $2 and u.day >= $3 and u.day < $4 {rest} limit $5"
    );
    list("usage_days_pkey", &text)
}

fn usage_sums(group: &str, rest: &str) -> Statement {
    let sum = |column: &str| format!("cast(coalesce(sum(u.{column}), 0) as bigint)");
    let sums = ["credits", "refunded", "quantity", "deductions", "refused"].map(sum).join(", ");
    usage_figures(&format!("{group}, {sums}"), rest)
}
