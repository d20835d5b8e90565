// Enqueues one Claude Code job, waits for its end and prints what the agent answered.
//
//   node enqueue.js "How many files does /usr/bin have?"
//
// Environment: REDIS_URL (redis://127.0.0.1:6379), QUEUE (claude-tasks), PREFIX (bull), and how long to wait,
// WAIT_SECONDS (3600).

import { randomUUID } from "node:crypto";
import { Queue, QueueEvents } from "bullmq";

const { REDIS_URL = "redis://127.0.0.1:6379", QUEUE = "claude-tasks", PREFIX, WAIT_SECONDS = 3600 } = process.env;
const command = process.argv[2] ?? "Say hello to a task queue in one friendly line.";

const options = { connection: { url: REDIS_URL }, ...(PREFIX && { prefix: PREFIX }) };
const queue = new Queue(QUEUE, options);

// Listens before the job is added: events are told only to those who listen already.
const events = new QueueEvents(QUEUE, options);
await events.waitUntilReady();

const taskId = randomUUID();
const say = (what) => console.error(`${taskId}: ${what}`);
events.on("active", ({ jobId }) => jobId === taskId && say("active"));
events.on("progress", ({ jobId, data }) => jobId === taskId && say(`progress ${JSON.stringify(data)}`));

const job = await queue.add(
  "claude-code",
  {
    taskId,
    userId: "alice",
    command, // the prompt
    arguments: { language: "en" }, // the agent finds them in its variable CLAUDE_JOB_ARGUMENTS
    workingDirectory: "reports", // relative to the job's workspace
    timeout: 10 * 60 * 1000, // of each attempt; milliseconds, unless the ClaudeCodeQueue says otherwise
    metadata: { requestedBy: "examples/queue" }, // kept with the job's rows in the database
  },
  {
    jobId: taskId, // a job that is added twice under one id is run once
    attempts: 3,
    backoff: { type: "exponential", delay: 5000 },
  },
);
say(`added to ${QUEUE}`);

try {
  const result = await job.waitUntilFinished(events, Number(WAIT_SECONDS) * 1000);
  console.log(JSON.stringify(result, null, 2));
} catch (error) {
  say(error.message); // why the job failed, or that the wait was too short
  process.exitCode = 1;
} finally {
  await events.close();
  await queue.close();
}
