-- Ends a statement that found something else than it was decided on, so that it needs no transaction
-- around it: whatever it wrote until then is undone.
create function refuse(state text, reason text) returns boolean language plpgsql as $$
begin
    raise exception using errcode = state, message = reason;
end
$$;
