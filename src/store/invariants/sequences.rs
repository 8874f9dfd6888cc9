//! The invariants of numbers without a gap, and of the order of history.

/// The rows of a workspace are numbered from 1 up to its head, and no number is given twice.
macro_rules! has_no_gap {
    (of: $table:literal, seq: $seq:literal, head: $head:literal, what: $what:literal) => {
        concat!(
            "
select c.workspace_id, cast(null as uuid) as row_id,
    format('%s ",
            $what,
            " up to %s, the head is %s', coalesce(r.row_count, 0), coalesce(r.last, 0), c.head) as detail
from (select workspace_id, ",
            $head,
            " as head from workspace_credits) c
left join (
    select workspace_id, count(*) as row_count, count(distinct ",
            $seq,
            ") as numbers, max(",
            $seq,
            ") as last
    from ",
            $table,
            " group by workspace_id
) r on r.workspace_id = c.workspace_id
where coalesce(r.row_count, 0) <> c.head or coalesce(r.last, 0) <> c.head or coalesce(r.numbers, 0) <> c.head
limit $1"
        )
    };
}

pub(super) const COMMAND_SEQ_HAS_NO_GAP: &str =
    has_no_gap!(of: "commands", seq: "seq", head: "version", what: "commands");
pub(super) const LEDGER_SEQ_HAS_NO_GAP: &str =
    has_no_gap!(of: "ledger_entries", seq: "seq", head: "ledger_seq", what: "entries");
pub(super) const USAGE_SEQ_HAS_NO_GAP: &str =
    has_no_gap!(of: "usage_logs", seq: "seq", head: "usage_seq", what: "usage logs");
pub(super) const WORKSPACE_SEQ_HAS_NO_GAP: &str =
    has_no_gap!(of: "event_outbox", seq: "workspace_seq", head: "event_seq", what: "events");

/// Instants rise strictly from command to command, and history is found by them.
pub(super) const HISTORY_IS_IN_ORDER: &str = "
select r.workspace_id, cast(null as uuid) as row_id,
    format('%s %s is earlier than the one before it', r.what, r.seq) as detail
from (
    select 'usage log' as what, workspace_id, seq,
        recorded_at <= lag(recorded_at) over (partition by workspace_id order by seq) as is_early
    from usage_logs
    union all
    select 'entry', workspace_id, seq, recorded_at < lag(recorded_at) over (partition by workspace_id order by seq)
    from ledger_entries
    union all
    select 'command', workspace_id, seq, recorded_at <= lag(recorded_at) over (partition by workspace_id order by seq)
    from commands
    union all
    select 'event', workspace_id, workspace_seq,
        seq < lag(seq) over (partition by workspace_id order by workspace_seq)
    from event_outbox
) r
where r.is_early
limit $1";

pub(super) const PARTITION_SEQ_HAS_NO_GAP: &str = "
select cast(null as uuid) as workspace_id, p.last_event_id as row_id,
    format('partition %s has %s events up to %s, the head is %s', p.partition_id, coalesce(o.row_count, 0),
        coalesce(o.last, 0), p.seq) as detail
from outbox_partitions p
left join (
    select partition_id, count(*) as row_count, max(seq) as last from event_outbox group by partition_id
) o on o.partition_id = p.partition_id
left join event_outbox e on e.partition_id = p.partition_id and e.seq = p.seq
where coalesce(o.row_count, 0) <> p.seq or coalesce(o.last, 0) <> p.seq or e.event_id is distinct from p.last_event_id
limit $1";

/// The oldest batches are deleted, but none from the floor on: the first record of a stream is of the floor or before it.
pub(super) const BATCHES_HAVE_NO_GAP: &str = "
select cast(null as uuid) as workspace_id, cast(null as uuid) as row_id,
    format('partition %s generation %s: the batch from %s follows %s', b.partition_id, b.generation, b.seq_from,
        b.seq_before) as detail
from (
    select s.partition_id, s.generation, s.seq_from,
        coalesce(
            lag(s.seq_to) over (partition by s.partition_id, s.generation order by s.seq_to),
            case when s.generation = l.generation and s.seq_from > l.floor_seq then l.floor_seq - 1 end
        ) as seq_before
    from stream_batches s
    join stream_leases l on l.partition_id = s.partition_id
) b
where b.seq_from <> b.seq_before + 1
limit $1";
