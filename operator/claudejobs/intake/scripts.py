"""The Lua scripts that BullMQ does not have. Like BullMQ's own, they reach jobs by the queue's key prefix, which a
Redis Cluster keeps in one slot because the prefix is in braces.

This project keeps three fields in a queue job's hash, which BullMQ ignores and removes with the job: ``ccj.uid`` (the
resource that was made for this run), ``ccj.cancel`` (which run a producer asked to cancel) and ``ccj.deliveries``
(how often this project finished it).
"""

from __future__ import annotations

from bullmq.redis_connection import SCRIPT_DEFINITIONS, loadScript

FIELD_UID = "ccj.uid"
FIELD_CANCEL = "ccj.cancel"
FIELD_DELIVERIES = "ccj.deliveries"

SWEEP = """
-- Renews all locks that are ours and tells of every active job, in one go.
-- KEYS: active list, stalled set, job schedulers. ARGV: key prefix, our token, how all tokens of this project begin,
-- milliseconds.
local out = {}
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  local key = ARGV[1] .. id
  local lock = redis.call('GET', key .. ':lock')
  local state = 'absent'
  if lock == ARGV[2] then
    redis.call('PEXPIRE', key .. ':lock', ARGV[4])
    redis.call('SREM', KEYS[2], id)
    state = 'ours'
  elseif lock then
    state = string.sub(lock, 1, #ARGV[3]) == ARGV[3] and 'former' or 'foreign'
  end
  local row = {id, state}
  local fields = redis.call('HMGET', key, 'timestamp', 'atm', 'ccj.deliveries', 'ccj.uid', 'ccj.cancel', 'defa', 'rjk')
  for i = 1, 6 do row[i + 2] = fields[i] or '' end
  -- A scheduler is at the time of its newest job; while that is this one, it has no successor.
  local newest = fields[7] and redis.call('ZSCORE', KEYS[3], fields[7])
  row[9] = newest and id == 'repeat:' .. fields[7] .. ':' .. tonumber(newest) and '1' or ''
  out[#out + 1] = row
end
return out
"""

LOOK_UP = """
-- Tells of jobs by id, whatever their state. KEYS: any key of the queue. ARGV: key prefix, then the ids.
local out = {}
for i = 2, #ARGV do
  local fields = redis.call('HMGET', ARGV[1] .. ARGV[i], 'timestamp', 'atm', 'ccj.deliveries', 'finishedOn')
  local row = {}
  for n = 1, 4 do row[n] = fields[n] or '' end
  out[#out + 1] = row
end
return out
"""

TAKE_LOCK = """
-- Takes the lock of an active job, if nobody or only the one that is named has it.
-- KEYS: active list, stalled set, lock. ARGV: id, our token, milliseconds, what the other's token begins with or ''.
local lock = redis.call('GET', KEYS[3])
if lock and lock ~= ARGV[2] and (ARGV[4] == '' or string.sub(lock, 1, #ARGV[4]) ~= ARGV[4]) then return 0 end
if not redis.call('LPOS', KEYS[1], ARGV[1]) then return 0 end
redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
redis.call('SREM', KEYS[2], ARGV[1])
return 1
"""

KEEP_TEMPLATE = """
-- Gives a job scheduler its data, if it has none: BullMQ 5's repeat option keeps it with the jobs only, as its own
-- workers know, and what Python's library makes a successor of is the scheduler's. KEYS: scheduler. ARGV: data.
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('HEXISTS', KEYS[1], 'data') == 0 then
  redis.call('HSET', KEYS[1], 'data', ARGV[1])
end
"""

NOTE_UID = """
-- Notes which resource was made for a run of a job, unless the job is in another one by now: a note that comes after
-- the run's end would stay for the next one. KEYS: job. ARGV: the note, then timestamp, finishes and deliveries.
local run = redis.call('HMGET', KEYS[1], 'timestamp', 'atm', 'ccj.deliveries')
for i = 1, 3 do
  local text = run[i] or ''
  if (string.match(text, '^%d+$') and text or '0') ~= ARGV[i + 1] then return 0 end
end
redis.call('HSET', KEYS[1], 'ccj.uid', ARGV[1])
return 1
"""

ASK_TO_CANCEL = """
-- Notes that this run of a job is to be cancelled, unless it is finished: not one after another worker's, that is
-- retried by hand. KEYS: job.
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HEXISTS', KEYS[1], 'finishedOn') == 1 then return 0 end
local run = redis.call('HMGET', KEYS[1], 'atm', 'ccj.deliveries')
redis.call('HSET', KEYS[1], 'ccj.cancel', (run[1] or '0') .. '/' .. (run[2] or '0'))
return 1
"""

ADD_LOGS = """
-- Appends lines to a job's log, as BullMQ's addLog does with one.
-- KEYS: job, its logs. ARGV: how many lines to keep or '', then the lines.
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
for i = 2, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
if ARGV[1] ~= '' then redis.call('LTRIM', KEYS[2], -tonumber(ARGV[1]), -1) end
return redis.call('LLEN', KEYS[2])
"""

FINISH = """
-- Before BullMQ's own script: does nothing unless the job is in the very run that is to end, else as if the lock were
-- another's. A retry by hand and a fetch may come between two tellings of an end, with the same lock.
-- KEYS, ARGV: BullMQ's, and then timestamp, atm and ccj.deliveries of the run.
do
  local run = redis.call('HMGET', KEYS[12], 'timestamp', 'atm', 'ccj.deliveries')
  for i = 1, 3 do
    if (run[i] or '') ~= ARGV[#ARGV - 3 + i] then return -6 end
  end
end
""" + loadScript(SCRIPT_DEFINITIONS["moveToFinished"])
