-- ARGV schedule, tenant  ->  deleted | missing
local id, tenant = take(), take()
local owner = redis.call('HGET', KEY.schedule(id), 'tenant')
if not owner then
  redis.call('ZREM', KEY.schedules, id)
  return { 'missing' }
end
if owner ~= tenant then return { 'missing' } end
redis.call('ZREM', KEY.schedules, id)
redis.call('ZREM', KEY.schedules_of(tenant), id)
redis.call('DEL', KEY.schedule(id))
return { 'deleted' }
