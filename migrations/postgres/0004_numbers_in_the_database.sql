-- Writers of one partition no longer need to know its head: the write gives events their numbers, and what it
-- rests on is checked workspace by workspace. So a workspace's row says which command was the last that wrote
-- more than this row, and the write takes which command was the last before it.
alter table workspace_credits add column rest_seq bigint;
update workspace_credits set rest_seq = command_seq;
alter table workspace_credits alter column rest_seq set not null;

alter type head_row add attribute events bigint;
alter type credits_row add attribute rest_seq bigint;
alter type credits_row add attribute command_seq_before bigint;
alter type command_row add attribute partition smallint;

-- A check is read from the catalogue and made ready anew by every statement that writes to its table, which
-- was a tenth of what a batch cost. `verify` checks the same; what guards against spending what is not there
-- stays.
alter table workspace_credits drop constraint never_below_the_overdraft;
alter table workspace_credits add constraint never_below_the_overdraft check (
    debt_credits <= overdraft_limit and current_credits >= -overdraft_limit
    and coalesce(current_grant_remaining, 1) > 0 and coalesce(current_grant_held, 0) >= 0
);
alter table stream_partition drop constraint head_is_sound;
alter table workspace_credits drop constraint figures_are_sound;
alter table commands drop constraint commands_fingerprint_check;
alter table credit_entries drop constraint entry_is_sound;
alter table usage_logs drop constraint usage_log_is_sound;
alter table event_outbox drop constraint event_is_sound;
