-- ARGV run, fence, told seq, step key, input tokens, most and least output tokens, their prices in nano-USD ('' = unknown):
--      of the input as a whole and of a thousand output tokens, model calls, tool calls,
--      tokens and nano-USD that earlier tries of the step took, warn at (percent)
-- -> granted, seq, output tokens, percent spent
--    | refused or busy (room there is, but it is held for calls in flight), seq, what ran out, percent spent, what follows
--    | what ended the ownership
local id, fence, told, step = take(), take(), take_number(), take()
local input, most, least = take_number(), take_number(), take_number()
local input_price, thousand_price = take(), take()
local calls, tools = take_number(), take_number()
local wasted, wasted_nano, warn_at = take_number(), take_number(), take_number()
-- With fewer output tokens than these, a call waits for what others in flight give back.
local ENOUGH = 1024
local run, answer = owned(id, fence, told)
if not run then return { answer, '0', '', '0' } end
local key, field = KEY.budget(run.root), 'reserved:' .. id .. ':' .. step

-- What this step holds already is of a try before this one, or of this very call, made again: it is void. What that
-- took is known by now, and a former owner's has been spent with its ownership.
local former = {}
for amount in string.gmatch(redis.call('HGET', key, field) or '', '%d+') do former[#former + 1] = number(amount) end
local room, whole, reserved = {}, {}, {}
for i, what in ipairs(SPENT) do
  local values = redis.call('HMGET', key, 'limit_' .. what, 'spent_' .. what, 'reserved_' .. what)
  reserved[i] = number(values[3]) - (former[i] or 0)
  whole[what] = values[1] and number(values[1]) - number(values[2]) or math.huge
  room[what] = whole[what] - reserved[i]
end

-- How many output tokens so much room buys, and what there is too little of.
local function buys(left)
  if left.model_calls < calls then return 0, 'model_calls' end
  if left.tool_calls < tools then return 0, 'tool_calls' end
  if calls == 0 then return 0 end
  local out = math.min(most, left.tokens - wasted - input)
  if out < least then return 0, 'tokens' end
  if left.nano_usd == math.huge then return out end
  if input_price == '' then return 0, 'price' end
  local nano, per = left.nano_usd - wasted_nano - tonumber(input_price), tonumber(thousand_price)
  if nano < 0 then return 0, 'nano_usd' end
  if per > 0 then out = math.min(out, math.floor(nano * 1000 / per)) end
  if out < least then return 0, 'nano_usd' end
  return out
end

local out, refused = buys(room)
local later, hopeless = buys(whole)
local busy = not hopeless and (refused or out < math.min(most, ENOUGH) and later > out)
local limit_ms = redis.call('HGET', key, 'limit_ms')
if limit_ms and calls + tools > 0 and run_ms(run) >= number(limit_ms) then refused, busy = 'seconds', false end
local percent = spent_percent(run)
local action = redis.call('HGET', key, 'on_exceeded') or 'incomplete'

if refused or busy then
  free_reservation(key, field, false)
  -- Another model may have a price.
  if not busy and refused ~= 'price' and redis.call('HSETNX', key, 'exceeded', int(now)) == 1 then
    emit(run, 'budget.exceeded', '', step, '{"limit":"' .. refused .. '","action":"' .. action .. '"}')
    redis.call('HSET', KEY.run(id), 'seq', int(run.seq))
    publish(run)
  end
  return { busy and 'busy' or 'refused', int(run.seq), refused or '', int(percent), action }
end

local nano = 0
if calls > 0 and input_price ~= '' then
  nano = math.ceil(tonumber(input_price) + out * tonumber(thousand_price) / 1000)
end
local amounts = { wasted + (calls > 0 and input + out or 0), wasted_nano + nano, calls, tools }
local write = { field, '' }
for i, what in ipairs(SPENT) do
  amounts[i] = int(amounts[i])
  write[#write + 1], write[#write + 2] = 'reserved_' .. what, int(reserved[i] + number(amounts[i]))
end
write[2] = table.concat(amounts, '|')
redis.call('HSET', key, unpack(write))
if percent >= warn_at and redis.call('HSETNX', key, 'warned', int(now)) == 1 then
  emit(run, 'budget.warning', '', step, '{"percent":' .. int(percent) .. '}')
  redis.call('HSET', KEY.run(id), 'seq', int(run.seq))
  publish(run)
end
return { 'granted', int(run.seq), int(out), int(percent) }
