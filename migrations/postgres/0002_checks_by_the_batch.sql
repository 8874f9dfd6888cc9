-- What a batch costs, and how it may be refused.

-- Ends a statement that found something else than it was decided on, so that it needs no transaction
-- around it: whatever it wrote until then is undone.
create function refuse(state text, reason text) returns boolean language plpgsql as $$
begin
    raise exception using errcode = state, message = reason;
end
$$;

-- A foreign key is checked row by row, and locks the row it names: for a deduction that cost as much as
-- writing the row. The same is checked here once for all rows of a statement. History is never updated,
-- and what it names is neither deleted nor given another key, so the check at the insert is enough.
alter table commands drop constraint commands_workspace_id_fkey;
alter table credit_entries drop constraint credit_entries_workspace_id_grant_id_fkey;

create function refuse_commands_of_no_workspace() returns trigger language plpgsql as $$
begin
    if exists (
        select from added a
        where not exists (select from workspaces w where w.workspace_id = a.workspace_id)
    ) then
        raise exception 'a command names a workspace that does not exist' using errcode = 'foreign_key_violation';
    end if;
    return null;
end
$$;

create trigger commands_are_of_workspaces after insert on commands
    referencing new table as added
    for each statement execute function refuse_commands_of_no_workspace();

create function refuse_entries_of_no_grant() returns trigger language plpgsql as $$
begin
    if exists (
        select from added a
        where a.grant_id is not null and not exists (
            select from credit_grants g where g.workspace_id = a.workspace_id and g.grant_id = a.grant_id
        )
    ) then
        raise exception 'an entry names a grant that its workspace does not have' using errcode = 'foreign_key_violation';
    end if;
    return null;
end
$$;

create trigger entries_name_grants_of_their_workspace after insert on credit_entries
    referencing new table as added
    for each statement execute function refuse_entries_of_no_grant();

create function refuse_loss_of_what_is_named() returns trigger language plpgsql as $$
begin
    raise exception 'history names this row: % on %', tg_op, tg_table_name using errcode = 'restrict_violation';
end
$$;

create trigger workspaces_are_kept before delete or update of workspace_id on workspaces
    for each row execute function refuse_loss_of_what_is_named();
create trigger grants_are_kept before delete or update of workspace_id, grant_id on credit_grants
    for each row execute function refuse_loss_of_what_is_named();
create trigger workspaces_are_not_truncated before truncate on workspaces
    for each statement execute function refuse_loss_of_what_is_named();
create trigger grants_are_not_truncated before truncate on credit_grants
    for each statement execute function refuse_loss_of_what_is_named();
