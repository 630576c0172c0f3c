-- Sends the lines of the file $BODIES as POSTs, in turn; without it, GETs. Adds $TOKEN as a bearer token, if there is one.
-- Prints the figures of the run as one line of JSON.
wrk.headers["Content-Type"] = "application/json"
local token = os.getenv("TOKEN") or ""
if token ~= "" then wrk.headers["Authorization"] = "Bearer " .. token end

local bodies = {}
local file = os.getenv("BODIES") or ""
if file ~= "" then
  for line in io.lines(file) do bodies[#bodies + 1] = line end
  wrk.method = "POST"
  wrk.body = bodies[1]
end

-- Only for several bodies: wrk sends a single one without asking Lua each time.
if #bodies > 1 then
  local requests, turn = {}, 0

  function init()
    for number, body in ipairs(bodies) do requests[number] = wrk.format(nil, nil, nil, body) end
  end

  function request()
    turn = turn % #requests + 1
    return requests[turn]
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('{"requests_per_s": %.1f, "p50_us": %d, "p99_us": %d, "requests": %d, "errors": %d}\n',
    summary.requests / (summary.duration / 1e6), latency:percentile(50), latency:percentile(99),
    summary.requests, failed))
end
