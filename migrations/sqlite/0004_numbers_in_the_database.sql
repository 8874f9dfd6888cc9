-- The write gives events their numbers, and what it rests on is checked workspace by workspace. So a
-- workspace's row says which command was the last that wrote more than this row.
alter table workspace_credits add column rest_seq integer not null default 0;
update workspace_credits set rest_seq = command_seq;
