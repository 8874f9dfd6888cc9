-- Sends requests to paths picked at random: wrk … -s load.lua URL -- TOKEN_FILE PATHS_FILE [RUN [FIRST [WAIT]]]
--
-- With RUN, a deduction is posted to each path, a hold of the same size, or the capture of all that is held, as the path
-- says, or the body behind the path on its line; RUN begins its idempotency key. Without, each path is read. With FIRST, the
-- paths are taken in their order, beginning there. With WAIT, a client waits that many milliseconds before each request.
-- Almost all of a request is prepared beforehand. At the end one line of JSON is printed.
local body = '{"feature_code":"text.generate","credits":"0.25","user_id":"user-7"}'
local heads, bodies, sent, run, first = {}, {}, 0, nil, nil

function init(arguments)
    local token = assert(io.open(arguments[1])):read("*l")
    run, first = arguments[3], tonumber(arguments[4])
    local rest = " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\nAuthorization: Bearer " .. token
        .. "\r\nContent-Type: application/json\r\n"
    for line in io.lines(arguments[2]) do
        local path, given = line:match("^(%S+) ?(.*)$")
        local own = given ~= "" and given or path:find("/capture$") and "{}" or body
        local mark = run and "Content-Length: " .. #own .. "\r\nIdempotency-Key: " .. run .. "-" or ""
        heads[#heads + 1] = (run and "POST " or "GET ") .. path .. rest .. mark
        bodies[#heads] = own
    end
    local wait = tonumber(arguments[5])
    if wait then
        function delay() return math.random(2 * wait) end
    end
    math.randomseed(run and tonumber(run:sub(1, 8), 16) or os.time())
end

function request()
    sent = sent + 1
    local n = first and (first + sent - 1) % #heads + 1 or math.random(#heads)
    return run and heads[n] .. sent .. "\r\n\r\n" .. bodies[n] or heads[n] .. "\r\n"
end

function done(summary, latency)
    local errors = summary.errors
    print(string.format('{"per_s": %.2f, "done": %d, "p50_ms": %.3f, "p95_ms": %.3f, "p99_ms": %.3f, "errors": %d}',
        summary.requests / summary.duration * 1e6, summary.requests, latency:percentile(50) / 1000,
        latency:percentile(95) / 1000, latency:percentile(99) / 1000,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
