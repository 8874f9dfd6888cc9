-- History is found by going from row to row: each usage log, ledger entry and event names the one before it of
-- its workspace, and the workspace's row names the last ones. Every 32nd is marked, in an index of these
-- alone, so that a page far back begins near. An index of all commands by number is gone with it: a batch wrote
-- to it in as many places as it had commands.
alter table usage_logs add column previous_command_id blob check (length(previous_command_id) = 16);
alter table credit_entries add column previous_command_id blob check (length(previous_command_id) = 16);
alter table event_outbox add column previous_event_id blob check (length(previous_event_id) = 16);
alter table workspace_credits add column last_usage_command_id blob check (length(last_usage_command_id) = 16);
alter table workspace_credits add column last_entry_command_id blob check (length(last_entry_command_id) = 16);
alter table workspace_credits add column last_event_id blob check (length(last_event_id) = 16);

drop trigger usage_logs_refuse_update;
create temp table chained as
select command_id as id, seq, lag(command_id) over (partition by workspace_id order by seq) as previous,
    row_number() over (partition by workspace_id order by seq desc) = 1 as is_last, workspace_id
from usage_logs;
create index temp.chained_by_id on chained (id, seq);
update usage_logs set previous_command_id = c.previous from temp.chained c where c.id = usage_logs.command_id;
update workspace_credits set last_usage_command_id = c.id
from temp.chained c where c.is_last and c.workspace_id = workspace_credits.workspace_id;
drop table temp.chained;
create trigger usage_logs_refuse_update before update on usage_logs
begin select raise(abort, 'history is immutable: update on usage_logs'); end;

drop trigger credit_entries_refuse_update;
create temp table chained as
select command_id as id, seq, lag(command_id) over (partition by workspace_id order by seq) as previous,
    row_number() over (partition by workspace_id order by seq desc) = 1 as is_last, workspace_id
from credit_entries;
create index temp.chained_by_id on chained (id, seq);
update credit_entries set previous_command_id = c.previous
from temp.chained c where c.id = credit_entries.command_id and c.seq = credit_entries.seq;
update workspace_credits set last_entry_command_id = c.id
from temp.chained c where c.is_last and c.workspace_id = workspace_credits.workspace_id;
drop table temp.chained;
create trigger credit_entries_refuse_update before update on credit_entries
begin select raise(abort, 'history is immutable: update on credit_entries'); end;

drop trigger event_outbox_refuse_update;
create temp table chained as
select event_id as id, lag(event_id) over (partition by workspace_id order by workspace_seq) as previous,
    row_number() over (partition by workspace_id order by workspace_seq desc) = 1 as is_last, workspace_id
from event_outbox;
create index temp.chained_by_id on chained (id);
update event_outbox set previous_event_id = c.previous from temp.chained c where c.id = event_outbox.event_id;
update workspace_credits set last_event_id = c.id
from temp.chained c where c.is_last and c.workspace_id = workspace_credits.workspace_id;
drop table temp.chained;
create trigger event_outbox_refuse_update before update on event_outbox
begin select raise(abort, 'history is immutable: update on event_outbox'); end;

create unique index usage_logs_marks on usage_logs (workspace_id, seq) where seq % 32 = 0;
create unique index credit_entries_marks on credit_entries (workspace_id, seq) where seq % 32 = 0;
create unique index event_outbox_marks on event_outbox (workspace_id, workspace_seq) where workspace_seq % 32 = 0;

drop index commands_by_workspace;
alter table commands drop column entry_seq;
alter table commands drop column usage_seq;
alter table commands drop column event_seq;
alter table commands drop column outbox_seq;
alter table commands drop column event_count;
