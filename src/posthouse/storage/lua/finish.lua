-- ARGV run, fence, told seq, status, output ('' = none), error ('' = none), events (type agent step data ...)
-- -> finished | what ended the ownership
local id, fence, told, status, output, problem = take(), take(), take_number(), take(), take(), take()
local events = take_rows(4)
local run, answer = owned(id, fence, told)
if not run then return { answer } end
conclude(run, 'finished', status, events, output, problem)
return { 'finished' }
