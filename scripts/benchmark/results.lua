-- What every script prints at its end: one line of JSON. Percentiles are of all answers of the run.
return function(summary, latency)
    local errors = summary.errors
    print(string.format(
        '{"per_s": %.2f, "done": %d, "p50_ms": %.3f, "p95_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, '
            .. '"errors": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}',
        summary.requests / summary.duration * 1e6, summary.requests,
        latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000,
        latency.max / 1000, errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
