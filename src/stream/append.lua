-- Compare and append: appends events to a stream after comparing what it already holds.
--
-- KEYS[1]  the stream          KEYS[2]  the key that names the generation to read
-- ARGV[1]  the generation      ARGV[2]  the floor: the number of the first event that the stream must hold
-- ARGV[3], ARGV[4]  number and event id of the previous event (0, '')
-- ARGV[5]  how many events; for each five more: number, event_id, event_type, workspace_id, envelope
--
-- Returns {'OK', 0}, {'BEHIND', top} or {'DIVERGED', seq}. Only OK has written anything. {'DIVERGED', 0}
-- means that consumers already read a later generation (no event has the number 0). The script decides
-- from the contents of the stream before its first write, and never from a failed XADD.
--
-- Events before the floor may have been trimmed. So an empty stream ends right before the floor, and what is before
-- the first entry cannot be compared and need not be: those events count as present. From the first entry on,
-- every entry must match.

local stream, generation_key = KEYS[1], KEYS[2]
local generation, floor, previous, previous_event = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local count = tonumber(ARGV[5])
local FIRST, WIDTH = 6, 5

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

local top, top_sub, top_entry = floor - 1, '0', nil
if kind == 'stream' then
    top_entry = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
    if top_entry then
        top, top_sub = number_of(top_entry[1])
    end
end
if top < previous then
    return { 'BEHIND', top }
end

-- Where the stream starts. An append that continues at the last entry compares with that one alone, and does not look
-- at the first: that would cost every append, and the publisher probes each stream every few seconds, without events.
local is_continued = top_entry and top == previous and top_sub == '0'
local start = floor
if is_continued and count > 0 then
    start = top
elseif top_entry then
    start = number_of(redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1])
    if start > floor then
        return { 'DIVERGED', floor }
    end
end

-- The previous event must be in its place.
if previous > 0 and previous >= start then
    local entry = top_entry
    if not is_continued then
        entry = redis.call('XRANGE', stream, ARGV[3] .. '-0', ARGV[3] .. '-0')[1]
    end
    if not entry or event_id_of(entry) ~= previous_event then
        return { 'DIVERGED', previous }
    end
end

-- Entries after it must be the same events, in order and with nothing between.
local last = math.max(previous, start - 1)
local present = math.min(last - previous, count)
if top_entry and not is_continued then
    local entries = redis.call('XRANGE', stream, string.format('%.0f-1', last), '+', 'COUNT', math.max(count - present, 1))
    for _, entry in ipairs(entries) do
        if present == count then
            -- Without events, only an entry with the same number as the last event is a difference.
            local seq = number_of(entry[1])
            if seq == last then
                return { 'DIVERGED', last }
            end
            break
        end
        local first = FIRST + present * WIDTH
        if entry[1] ~= ARGV[first] .. '-0' or event_id_of(entry) ~= ARGV[first + 1] then
            return { 'DIVERGED', tonumber(ARGV[first]) }
        end
        present = present + 1
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
