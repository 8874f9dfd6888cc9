-- Compare and append: makes a run of events the next ones of a stream, or says why that cannot be.
--
-- KEYS[1]  the stream          KEYS[2]  the pointer to the generation that consumers read
-- ARGV[1]  the generation      ARGV[2], ARGV[3]  number and event id of the event before (0, '')
-- ARGV[4]  how many events; for each five more: number, event_id, event_type, workspace_id, envelope
--
-- Answers {'OK', 0}, {'BEHIND', top} or {'DIVERGED', seq}. Only OK has written anything. {'DIVERGED', 0},
-- which is no event's number: consumers already read a later generation than this one. The decision
-- is made from what the stream holds, before the first write, and never from a failed XADD.

local stream, pointer = KEYS[1], KEYS[2]
local generation, previous, previous_event = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local count = tonumber(ARGV[4])
local FIRST, WIDTH = 5, 5

local function number_of(id)
    local seq, sub = string.match(id, '^(%d+)-(%d+)$')
    return tonumber(seq), sub
end

local function event_id_of(entry)
    local fields = entry[2]
    for i = 1, #fields, 2 do
        if fields[i] == 'event_id' then
            return fields[i + 1]
        end
    end
    return nil
end

-- A later generation than the database's: it was restored to a time before a rebuild (or the publisher
-- lost its lease before one). Nobody reads this generation any more.
local current = tonumber(redis.call('GET', pointer) or '0') or 0
if current > generation then
    return { 'DIVERGED', 0 }
end

-- A key of another type holds something else at the very next number.
local kind = redis.call('TYPE', stream).ok
if kind ~= 'stream' and kind ~= 'none' then
    return { 'DIVERGED', previous + 1 }
end

local top, top_sub, top_entry = 0, '0', nil
if kind == 'stream' then
    top_entry = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
    if top_entry then
        top, top_sub = number_of(top_entry[1])
    end
end
if top < previous then
    return { 'BEHIND', top }
end

-- The event before must be where it belongs.
if previous > 0 then
    local at = top_entry
    if top > previous or top_sub ~= '0' then
        at = redis.call('XRANGE', stream, ARGV[2] .. '-0', ARGV[2] .. '-0')[1]
    end
    if not at or event_id_of(at) ~= previous_event then
        return { 'DIVERGED', previous }
    end
end

-- What is there already must be the same events, one after the other and nothing between.
local there = 0
if top > previous or top_sub ~= '0' then
    local entries = redis.call('XRANGE', stream, ARGV[2] .. '-1', '+', 'COUNT', math.max(count, 1))
    for i, entry in ipairs(entries) do
        if i > count then
            -- A probe: only a stray entry right behind the event before is a difference.
            local seq = number_of(entry[1])
            if seq == previous then
                return { 'DIVERGED', previous }
            end
            break
        end
        local at = FIRST + (i - 1) * WIDTH
        if entry[1] ~= ARGV[at] .. '-0' or event_id_of(entry) ~= ARGV[at + 1] then
            return { 'DIVERGED', tonumber(ARGV[at]) }
        end
        there = i
    end
end

local function add(call, i)
    local at = FIRST + i * WIDTH
    return call('XADD', stream, ARGV[at] .. '-0',
        'event_id', ARGV[at + 1], 'event_type', ARGV[at + 2],
        'workspace_id', ARGV[at + 3], 'event', ARGV[at + 4])
end

-- The highest id that the key ever had is higher than its last entry only when entries at the end
-- were deleted (XDEL, XTRIM), never after a failover or a restart. Redis refuses to fill the gap, so
-- the mark is set back to the last entry; the numbers that follow get their events again.
local function set_mark_back()
    local info = redis.call('XINFO', 'STREAM', stream)
    local mark
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then
            mark = info[i + 1]
        end
    end
    local end_id = top_entry and top_entry[1] or '0-0'
    if mark ~= end_id then
        local set = redis.pcall('XSETID', stream, end_id)
        if set.err then
            -- Newer servers refuse to go below a deleted entry, until that is forgotten too.
            redis.call('XSETID', stream, mark, 'ENTRIESADDED', redis.call('XLEN', stream), 'MAXDELETEDID', '0-0')
            redis.call('XSETID', stream, end_id)
        end
    end
end

if there < count then
    -- What is missing is decided. If Redis refuses the first of it, then for the mark, which is not asked
    -- for each time because that costs more than an entry; or for a reason that refuses it again.
    local added = add(redis.pcall, there)
    if type(added) == 'table' and added.err then
        if kind == 'stream' then
            set_mark_back()
        end
        add(redis.call, there)
    end
    for i = there + 1, count - 1 do
        add(redis.call, i)
    end
end

-- The pointer only ever goes forward, so a publisher that is late cannot turn consumers back.
if current < generation then
    redis.call('SET', pointer, ARGV[1])
end
return { 'OK', 0 }
