-- What history names is kept: on PostgreSQL nothing else would keep it, and both databases refuse the same.
-- The references themselves stay foreign keys here: each is a look-up in this process, without a lock.

create trigger workspaces_are_not_deleted before delete on workspaces begin
    select raise(abort, 'history names this row: DELETE on workspaces');
end;
create trigger workspaces_keep_their_keys before update of workspace_id on workspaces begin
    select raise(abort, 'history names this row: UPDATE on workspaces');
end;
create trigger grants_are_not_deleted before delete on credit_grants begin
    select raise(abort, 'history names this row: DELETE on credit_grants');
end;
create trigger grants_keep_their_keys before update of workspace_id, grant_id on credit_grants begin
    select raise(abort, 'history names this row: UPDATE on credit_grants');
end;
