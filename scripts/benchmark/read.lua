-- Gets a path picked at random: wrk … -s read.lua URL -- TOKEN_FILE PATHS_FILE
local print_results = dofile((debug.getinfo(1, "S").source:sub(2):match(".*/") or "./") .. "results.lua")
local requests, count = {}, 0

function init(arguments)
    local token = assert(io.open(arguments[1])):read("*l")
    for path in io.lines(arguments[2]) do
        count = count + 1
        requests[count] = "GET " .. path .. " HTTP/1.1\r\nHost: " .. wrk.host .. "\r\nAuthorization: Bearer "
            .. token .. "\r\n\r\n"
    end
end

function request()
    return requests[math.random(count)]
end

function done(summary, latency)
    print_results(summary, latency)
end
