-- What both baselines of the embedded database write to: 10,000 accounts, numbered from 0, and their history.
create table accounts (id integer primary key, balance integer not null, seq integer not null) strict;
create table usage_logs (
    account integer not null, seq integer not null, command blob not null, feature text not null,
    credits integer not null, recorded_at integer not null, primary key (account, seq)
) strict, without rowid;
create table entries (
    account integer not null, seq integer not null, command blob not null, from_account text not null,
    to_account text not null, amount integer not null, balance_after integer not null, primary key (account, seq)
) strict, without rowid;
create table events (
    seq integer primary key, id blob not null, account integer not null, type text not null, data text not null
) strict;
with recursive numbers (n) as (select 0 union all select n + 1 from numbers where n + 1 < 10000)
insert into accounts (id, balance, seq) select n, 1000000000000000, 0 from numbers;
