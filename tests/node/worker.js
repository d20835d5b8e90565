// A BullMQ worker, which may share its queue with others. Settings: `queue`, `prefix`, `worker` (the worker's options).
//
// A job's data say what becomes of it: {"fail": "reason"} fails, {"hold": true} is held until the command `release`,
// anything else is returned. Each job reports progress and a line of log.

import { bullmq, emit, options, report, serve, settings } from "./driver.js";

const held = new Set();

async function work(job) {
  emit("started", { jobId: job.id });
  await job.updateProgress({ percent: 50, message: "half of it" });
  await job.log(`attempt ${job.attemptsMade + 1}`);
  if (job.data.hold) await new Promise((release) => held.add(release));
  if (job.data.fail) throw new Error(job.data.fail);
  return { echo: job.data };
}

const worker = new bullmq.Worker(settings.queue, work, { ...options(settings.prefix), ...settings.worker });
worker.on("error", report);
await worker.waitUntilReady();

const release = () => {
  held.forEach((go) => go());
  held.clear();
};
await serve({ release }, () => worker.close(true));
