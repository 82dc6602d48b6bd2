-- ARGV run, fence  ->  isolated | what ended the ownership
-- A suspect's own process is there and about to begin it: from here on its worker's death counts against the run as well.
local id, fence = take(), take()
local run, answer = owned(id, fence, 0)
if not run then return { answer } end
redis.call('HSET', KEY.run(id), 'isolated', int(run.epoch))
return { 'isolated' }
