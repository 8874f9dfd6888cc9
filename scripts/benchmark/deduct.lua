-- A deduction with a key of its own from a workspace picked at random: wrk … -s deduct.lua URL -- TOKEN_FILE IDS_FILE RUN
--
-- All but the key's number is put together beforehand, so that a request costs one concatenation. RUN
-- makes the keys of this run unlike those of any other. Absent: looking at answers; wrk counts those that
-- are no success.
local print_results = dofile((debug.getinfo(1, "S").source:sub(2):match(".*/") or "./") .. "results.lua")
local body = '{"feature_code":"text.generate","credits":"0.25","user_id":"user-7"}'
local heads, count, sent = {}, 0, 0
local tail

function init(arguments)
    local token = assert(io.open(arguments[1])):read("*l")
    for id in io.lines(arguments[2]) do
        count = count + 1
        heads[count] = "POST /v1/workspaces/" .. id .. "/credits/deduct HTTP/1.1\r\nHost: " .. wrk.host
            .. "\r\nAuthorization: Bearer " .. token .. "\r\nContent-Type: application/json\r\nContent-Length: "
            .. #body .. "\r\nIdempotency-Key: " .. arguments[3] .. "-"
    end
    tail = "\r\n\r\n" .. body
    math.randomseed(tonumber(arguments[3]:sub(1, 8), 16))
end

function request()
    sent = sent + 1
    return heads[math.random(count)] .. sent .. tail
end

function done(summary, latency)
    print_results(summary, latency)
end
