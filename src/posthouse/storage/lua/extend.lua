-- ARGV run, fence, told seq, step key, limits that grow (name amount ...)  ->  extended | what ended the ownership
-- Once for a step, however often it is called.
local id, fence, told, step = take(), take(), take_number(), take()
local grow = take_rows(2)
local run, answer = owned(id, fence, told)
if not run then return { answer } end
local key = KEY.budget(run.root)
local marker = 'extended:' .. id .. ':' .. step
if redis.call('HEXISTS', key, marker) == 0 then
  local write = { marker, int(now) }
  for _, row in ipairs(grow) do
    local limit = redis.call('HGET', key, 'limit_' .. row[1])
    if limit then write[#write + 1], write[#write + 2] = 'limit_' .. row[1], int(number(limit) + number(row[2])) end
  end
  redis.call('HDEL', key, 'warned', 'exceeded')
  redis.call('HSET', key, unpack(write))
end
return { 'extended' }
