//! The invariants of statements.

/// The first statement of a workspace begins with its first event and with nothing. Each later one begins with the event that
/// ends the one before, and with its balance.
pub(super) const STATEMENTS_ARE_A_CHAIN: &str = concat!(
    builds!("billing"),
    "
select s.workspace_id, cast(null as uuid) as row_id,
    format('the statement opens with %s at event %s, the one before closes with %s at event %s', s.opening, s.first_seq,
        s.closing_before, s.seq_before) as detail
from (
    select workspace_id, opening, first_seq,
        lag(closing, 1, 0) over (partition by version, workspace_id order by period_start) as closing_before,
        lag(last_seq, 1, 1) over (partition by version, workspace_id order by period_start) as seq_before
    from statements where version in (select version from builds)
) s
where s.opening <> s.closing_before or s.first_seq <> s.seq_before
limit $1"
);

/// As far as the cursor is, and up to the event that could not be taken. Left out are workspaces with a discarded event, and
/// statements that say that something is unexplained. The events tell which usage logs belong to a period: a subscription may
/// end within one, and the next events have the same instant as its end.
pub(super) const STATEMENT_IS_SUM_OF_USAGE_LOGS: &str = concat!(
    builds!("billing"),
    ", raised as (
    select workspace_id, causation_id, max(workspace_seq) as workspace_seq, max(seq) as seq
    from event_outbox where event_type = 'CreditConsumed' group by workspace_id, causation_id
), charged as (
    select l.workspace_id, l.feature_code, o.workspace_seq, o.seq, sum(l.credits) as credits
    from usage_logs l
    cross join raised o
    where o.workspace_id = l.workspace_id and o.causation_id = l.command_id
    group by l.workspace_id, l.feature_code, o.workspace_seq, o.seq
), compared as (
    select version, workspace_id, period_start, feature_code, credits, 0 as logged
    from statement_lines where version in (select version from builds)
    union all
    select s.version, s.workspace_id, s.period_start, c.feature_code, 0, c.credits
    from statements s
    join consumer_cursors k on k.consumer = 'billing' and k.version = s.version and k.partition_id = s.partition_id
    join charged c on c.workspace_id = s.workspace_id and c.seq <= k.seq and c.workspace_seq >= s.first_seq
        and (s.closed_at is null or c.workspace_seq <= s.last_seq)
    left join parked_workspaces p
        on p.consumer = 'billing' and p.version = s.version and p.workspace_id = s.workspace_id
    where s.version in (select version from builds) and (p.workspace_seq is null or c.workspace_seq < p.workspace_seq)
)
select workspace_id, cast(null as uuid) as row_id,
    format('the statement says %s of %s, the usage logs of its events %s', sum(credits), feature_code, sum(logged)) as detail
from compared c
where not exists (
    select 1 from dead_letters d
    where d.source = 'consumer' and d.name = 'billing' and d.version = c.version and d.workspace_id = c.workspace_id
        and d.state = 'discarded'
) and not exists (
    select 1 from statements s
    where s.version = c.version and s.workspace_id = c.workspace_id and s.period_start = c.period_start
        and s.unexplained <> 0
)
group by version, workspace_id, period_start, feature_code
having sum(credits) <> sum(logged)
limit $1"
);
