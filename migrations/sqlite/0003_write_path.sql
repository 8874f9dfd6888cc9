-- What a batch writes, and in what shape.

-- A deduction mostly moves the same grant and the same feature as the one before it. What it moves is kept
-- in the workspace's row, so that it writes one row and not three; the rows of their own have what was true
-- before they became current. The views say what is true now.
alter table workspace_credits add current_grant_id blob check (length(current_grant_id) = 16);
alter table workspace_credits add current_grant_remaining integer
    check (current_grant_remaining > 0 and (current_grant_remaining is null) = (current_grant_id is null));
alter table workspace_credits add current_grant_held integer
    check (current_grant_held >= 0 and (current_grant_held is null) = (current_grant_id is null));
alter table workspace_credits add current_feature_code text;
alter table workspace_credits add current_feature_used integer
    check (current_feature_used >= 0 and (current_feature_used is null) = (current_feature_code is null));
alter table workspace_credits add current_feature_fired integer
    check (current_feature_fired in (0, 1) and (current_feature_fired is null) = (current_feature_code is null));

create view workspace_features_now as
select f.workspace_id, f.feature_code, f.plan_enabled, f.plan_unit_price, f.plan_limit_amount,
    f.plan_limit_mode, f.override_enabled, f.override_unit_price, f.override_limit,
    case when c.current_feature_code = f.feature_code then c.current_feature_used else f.used_this_month end
        as used_this_month,
    case when c.current_feature_code = f.feature_code then c.current_feature_fired else f.limit_fired end
        as limit_fired
from workspace_features f
join workspace_credits c on c.workspace_id = f.workspace_id;

create view credit_grants_now as
select g.workspace_id, g.grant_id, g.source, g.amount,
    case when c.current_grant_id = g.grant_id then c.current_grant_remaining else g.remaining end as remaining,
    case when c.current_grant_id = g.grant_id then c.current_grant_held else g.held end as held,
    g.priority, g.effective_at, g.expires_at, g.feature_scope, g.payment_reference,
    g.amount_minor, g.currency, g.is_open
from credit_grants g
join workspace_credits c on c.workspace_id = g.workspace_id;
