-- Workers that take jobs and complete them at once: wrk -tN -cN … -s jobs.lua URL -- TOKEN_FILE WORKERS_FILE MOST [ACTUAL]
--
-- Each thread is one of the workers in the file, with a connection of its own, and takes up to MOST jobs at a time. With
-- ACTUAL, each job has cost so many credits. At the end one line of JSON is printed.
local ffi = require("ffi")
ffi.cdef("typedef struct { long s, us; } moment; int gettimeofday(moment *at, void *zone);")

local moment, began, jobs, leasing, completing, actual = ffi.new("moment"), 0, {}, nil, nil, ""
local threads = {}
completed, refused, empty, lease_ms, complete_ms = 0, 0, 0, {}, {} -- read by done()

local function now()
    ffi.C.gettimeofday(moment, nil)
    return tonumber(moment.s) % 1000000 * 1000 + tonumber(moment.us) / 1000
end

function setup(thread)
    threads[#threads + 1] = thread
    thread:set("place", #threads)
end

-- wrk has room for few open files.
local function line(name, number)
    local file, found = assert(io.open(name)), nil
    for _ = 1, number do found = file:read("*l") end
    file:close()
    return found
end

function init(arguments)
    local token, worker = line(arguments[1], 1), line(arguments[2], place)
    local head = function(what)
        return "POST /v1/workers/" .. worker .. what .. " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\nAuthorization: Bearer "
            .. token .. "\r\nContent-Type: application/json\r\nContent-Length: "
    end
    local body = '{"max":' .. arguments[3] .. "}"
    leasing, completing = head("/lease") .. #body .. "\r\n\r\n" .. body, head("/complete")
    actual = arguments[4] and ',"actual":{"credits":"' .. arguments[4] .. '"}' or ""
end

function request()
    began = now()
    if #jobs == 0 then return leasing end
    local body = '{"jobs":[' .. table.concat(jobs, ",") .. "]}"
    return completing .. #body .. "\r\n\r\n" .. body
end

function response(status, _, body)
    local ms = now() - began
    if #jobs > 0 then
        local _, ended = body:gsub('"state":"completed"', "")
        completed, refused, jobs = completed + ended, refused + #jobs - ended, {}
        complete_ms[#complete_ms + 1] = ms
        return
    end
    for job, lease in body:gmatch('"job_id":"([^"]+)","lease_id":"([^"]+)"') do
        jobs[#jobs + 1] = '{"job_id":"' .. job .. '","lease_id":"' .. lease .. '"' .. actual .. "}"
    end
    if #jobs == 0 then empty = empty + 1 end
    lease_ms[#lease_ms + 1] = ms
end

function done(summary)
    local sum, errors = { completed = 0, refused = 0, empty = 0 }, summary.errors
    local all = { lease_ms = {}, complete_ms = {} }
    for _, thread in ipairs(threads) do
        for name in pairs(sum) do sum[name] = sum[name] + thread:get(name) end
        for name, ms in pairs(all) do
            for _, each in ipairs(thread:get(name)) do ms[#ms + 1] = string.format("%.3f", each) end
        end
    end
    print(string.format('{"seconds": %.4f, "done": %d, "refused": %d, "empty": %d, "errors": %d, '
            .. '"lease_ms": [%s], "complete_ms": [%s]}',
        summary.duration / 1e6, sum.completed, sum.refused, sum.empty,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout,
        table.concat(all.lease_ms, ","), table.concat(all.complete_ms, ",")))
end
