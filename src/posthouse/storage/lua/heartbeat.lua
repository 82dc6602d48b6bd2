-- ARGV worker, lease ms, health fields (name value ...), leases (run, fence, told seq ...)  ->  1 | 0 for each lease
local worker, lease = take(), take_number()
local health, leases = take_rows(2), take_rows(3)

for _, row in ipairs(health) do redis.call('HSET', KEY.worker(worker), row[1], row[2]) end
redis.call('HSET', KEY.worker(worker), 'seen_at', int(now))
redis.call('PEXPIRE', KEY.worker(worker), int(lease * 3))

local answers = {}
for i, row in ipairs(leases) do
  local run, answer = owned(row[1], row[2], tonumber(row[3]))
  if run then
    redis.call('ZADD', KEY.due, int(now + lease), run.id)
    redis.call('HSET', KEY.run(run.id), 'lease', int(now + lease), 'begun', '1')
    answers[i] = 1
  else
    answers[i] = answer == 'fenced' and 0 or 1
  end
end
return answers
