// A BullMQ worker that starts one process per job and waits for its end, which is how Claude Code is commonly run from
// a queue. Settings: `queue`, `prefix`, `concurrency`, `command` (a list). Prints the event `spawned` for each process.

import { spawn } from "node:child_process";
import { bullmq, emit, options, report, serve, settings } from "./driver.js";

const [program, ...programArguments] = settings.command;

function run(job) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, programArguments, { stdio: "ignore" });
    child.once("spawn", () => emit("spawned", { jobId: job.id }));
    child.once("error", reject);
    child.once("close", (code, signal) => {
      if (code === 0) resolve({ exitCode: 0 });
      else reject(new Error(`${program} ended with ${signal ?? code}`));
    });
  });
}

const worker = new bullmq.Worker(settings.queue, run, {
  ...options(settings.prefix),
  concurrency: settings.concurrency,
});
worker.on("error", report);
await worker.waitUntilReady();
await serve({}, () => worker.close(true));
