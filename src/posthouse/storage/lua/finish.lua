-- ARGV run, fence, told seq, status, output ('' = none), error ('' = none), events (type agent step data ...)
-- -> finished | what ended the ownership
local id, fence, told, status, output, problem = take(), take(), take_number(), take(), take(), take()
local events = take_rows(4)
local run, answer = owned(id, fence, told)
if not run then return { answer } end

redis.call('ZADD', KEY.due, int(now + run.ttl), id)
emit_rows(run, events)
end_ownership(run, 'finished', status, 'output', output, 'error', problem, 'ended_at', int(now), 'wait_reason', '')
drop_dispatch(run)
redis.call('DEL', KEY.waits(id), KEY.starts(id))
if run.root == id then
  local members = redis.call('SMEMBERS', KEY.tree(id))
  members[#members + 1] = id
  for _, member in ipairs(members) do
    for _, key in ipairs(own_keys(member)) do
      -- The records stay for the sweep, which alone knows the index entries that go with them.
      if key ~= KEY.run(member) then redis.call('PEXPIRE', key, int(run.ttl + 60000)) end
    end
  end
end
publish(run)
return { 'finished' }
