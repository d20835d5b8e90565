// A producer as any Node program would have one: adds jobs, waits for them, looks at them and takes them back.
// Every command takes `queue` and, unless it is BullMQ's own, `prefix`.

import { bullmq, lastEventId, options, report, serve } from "./driver.js";

const { Queue, QueueEvents, QueueEventsProducer } = bullmq;
const made = new Map();

// One object of a class per queue, made when the first command needs it.
function the(Class, { queue, prefix }, more = {}) {
  const key = JSON.stringify([Class.name, queue, prefix]);
  if (!made.has(key)) {
    const object = new Class(queue, { ...options(prefix), ...more });
    object.on?.("error", report);
    made.set(key, object);
  }
  return made.get(key);
}

const queueOf = (fields) => the(Queue, fields);

async function jobOf(fields) {
  const job = await queueOf(fields).getJob(fields.jobId);
  if (!job) throw new Error(`no job ${fields.jobId} in queue ${fields.queue}`);
  return job;
}

async function describe(fields) {
  const queue = queueOf(fields);
  const job = await queue.getJob(fields.jobId);
  if (!job) return null;
  const { id, name, data, opts, progress, delay, priority, timestamp, processedOn, finishedOn } = job;
  const { attemptsMade, attemptsStarted, stalledCounter, failedReason, stacktrace, returnvalue } = job;
  const [state, { logs }] = await Promise.all([job.getState(), queue.getJobLogs(id)]);
  return {
    ...{ id, name, data, opts, progress, delay, priority, timestamp, processedOn, finishedOn },
    ...{ attemptsMade, attemptsStarted, stalledCounter, failedReason, stacktrace, returnvalue },
    ...{ state, logs },
  };
}

const commands = {
  add: async (fields) => (await queueOf(fields).add(fields.name, fields.data, fields.opts)).id,
  addBulk: async (fields) => (await queueOf(fields).addBulk(fields.jobs)).map((job) => job.id),
  waitUntilFinished: async (fields) => {
    const events = the(QueueEvents, fields, { lastEventId: await lastEventId(fields.queue, fields.prefix) });
    await events.waitUntilReady();
    return (await jobOf(fields)).waitUntilFinished(events, fields.ttl);
  },
  getJob: describe,
  getState: (fields) => queueOf(fields).getJobState(fields.jobId),
  getJobCounts: (fields) => queueOf(fields).getJobCounts(),
  remove: async (fields) => (await jobOf(fields)).remove(),
  retry: async (fields) => (await jobOf(fields)).retry(fields.state, fields.options),
  pause: (fields) => queueOf(fields).pause(),
  resume: (fields) => queueOf(fields).resume(),
  drain: (fields) => queueOf(fields).drain(fields.delayed),
  obliterate: (fields) => queueOf(fields).obliterate({ force: fields.force }),
  upsertJobScheduler: (fields) => queueOf(fields).upsertJobScheduler(fields.schedulerId, fields.repeat, fields.template),
  removeJobScheduler: (fields) => queueOf(fields).removeJobScheduler(fields.schedulerId),
  publishCancel: ({ jobId, ...fields }) =>
    the(QueueEventsProducer, fields).publishEvent({ eventName: "cancel", jobId }),
};

await serve(commands, () => Promise.all([...made.values()].map((object) => object.close())));
