-- Compare and append: appends events to a stream after comparing what it already holds.
--
-- KEYS[1]  the stream          KEYS[2]  the key that names the generation to read
-- ARGV[1]  the generation      ARGV[2], ARGV[3]  number and event id of the previous event (0, '')
-- ARGV[4]  how many events; for each five more: number, event_id, event_type, workspace_id, envelope
--
-- Returns {'OK', 0}, {'BEHIND', top} or {'DIVERGED', seq}. Only OK has written anything. {'DIVERGED', 0}
-- means that consumers already read a later generation (no event has the number 0). The script decides
-- from the contents of the stream before its first write, and never from a failed XADD.

local stream, generation_key = KEYS[1], KEYS[2]
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

-- A later generation exists: the database was restored to a time before a rebuild, or the publisher lost
-- its lease before one. Nobody reads this generation any more.
local current = tonumber(redis.call('GET', generation_key) or '0') or 0
if current > generation then
    return { 'DIVERGED', 0 }
end

-- A key of another type diverges at the next number.
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

-- The previous event must be in its place.
if previous > 0 then
    local entry = top_entry
    if top > previous or top_sub ~= '0' then
        entry = redis.call('XRANGE', stream, ARGV[2] .. '-0', ARGV[2] .. '-0')[1]
    end
    if not entry or event_id_of(entry) ~= previous_event then
        return { 'DIVERGED', previous }
    end
end

-- Entries after it must be the same events, in order and with nothing between.
local present = 0
if top > previous or top_sub ~= '0' then
    local entries = redis.call('XRANGE', stream, ARGV[2] .. '-1', '+', 'COUNT', math.max(count, 1))
    for i, entry in ipairs(entries) do
        if i > count then
            -- Without events, only an entry with the same number as the previous event is a difference.
            local seq = number_of(entry[1])
            if seq == previous then
                return { 'DIVERGED', previous }
            end
            break
        end
        local first = FIRST + (i - 1) * WIDTH
        if entry[1] ~= ARGV[first] .. '-0' or event_id_of(entry) ~= ARGV[first + 1] then
            return { 'DIVERGED', tonumber(ARGV[first]) }
        end
        present = i
    end
end

local function add(call, i)
    local first = FIRST + i * WIDTH
    return call('XADD', stream, ARGV[first] .. '-0',
        'event_id', ARGV[first + 1], 'event_type', ARGV[first + 2],
        'workspace_id', ARGV[first + 3], 'event', ARGV[first + 4])
end

-- Redis refuses ids up to the last generated one. That one is after the last entry only if entries at the
-- end were deleted (XDEL, XTRIM), never after a failover or a restart. So it is reset to the last entry, and
-- the deleted numbers get their events again.
local function reset_last_generated_id()
    local info = redis.call('XINFO', 'STREAM', stream)
    local last_generated_id
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then
            last_generated_id = info[i + 1]
        end
    end
    local end_id = top_entry and top_entry[1] or '0-0'
    if last_generated_id ~= end_id then
        local set = redis.pcall('XSETID', stream, end_id)
        if set.err then
            -- Redis 7 and later refuse an id below the highest deleted one, until that is reset too.
            redis.call('XSETID', stream, last_generated_id, 'ENTRIESADDED', redis.call('XLEN', stream), 'MAXDELETEDID', '0-0')
            redis.call('XSETID', stream, end_id)
        end
    end
end

if present < count then
    -- If Redis refuses the first entry, the reason is the last generated id, or an error that comes again. The id
    -- is not checked beforehand, because that costs more than an entry.
    local added = add(redis.pcall, present)
    if type(added) == 'table' and added.err then
        if kind == 'stream' then
            reset_last_generated_id()
        end
        add(redis.call, present)
    end
    for i = present + 1, count - 1 do
        add(redis.call, i)
    end
end

-- The generation to read never decreases, so a late publisher cannot send consumers back.
if current < generation then
    redis.call('SET', generation_key, ARGV[1])
end
return { 'OK', 0 }
