-- ARGV worker, lease ms, health fields (name value ...), leases (run, fence, told seq ...)  ->  1 | 0 for each lease
local worker, lease = take(), take_number()
local health, leases = take_rows(2), take_rows(3)

-- Whoever says nothing of itself, as the process of a suspect, is no worker of the fleet.
if #health > 0 then
  for _, row in ipairs(health) do redis.call('HSET', KEY.worker(worker), row[1], row[2]) end
  redis.call('HSET', KEY.worker(worker), 'seen_at', int(now))
  redis.call('PEXPIRE', KEY.worker(worker), int(lease * 3))
  redis.call('ZADD', KEY.workers, int(now), worker)
end

local answers = {}
for i, row in ipairs(leases) do
  local run, answer = owned(row[1], row[2], tonumber(row[3]))
  if run and overdue(run) then
    fail(run, 'timeout')
    answers[i] = 0
  elseif run then
    look_again(run, now + lease)
    redis.call('HSET', KEY.run(run.id), 'lease', int(now + lease))
    answers[i] = 1
  else
    answers[i] = (answer == 'fenced' or answer == 'retried') and 0 or 1
  end
end
return answers
