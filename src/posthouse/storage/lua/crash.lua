-- ARGV run, fence, crashes that end a run  ->  crashed | poisoned | what ended the ownership
-- A process of its own that worked on a suspect has died, and whoever started it lives.
local id, fence, limit = take(), take(), take_number()
local run, answer = owned(id, fence, 0)
if not run then return { answer } end
if run.crashes + 1 >= limit then
  fail(run, 'poisoned', 'poisoned')
  return { 'poisoned' }
end
redis.call('ZADD', KEY.due, int(now), id)
end_ownership(run, 'crashed', run.status, 'crashes', int(run.crashes + 1))
enqueue(run, 0, 'crash')
return { 'crashed' }
