// Prints every event of the queues in the setting `queues`: [{"queue", "prefix"}], also those that BullMQ does not know.

import { bullmq, emit, options, report, serve, settings } from "./driver.js";

class Listener extends bullmq.QueueEvents {
  emit(event, fields, streamId) {
    // An event comes twice, the second time under a name with the job's id; what has no id of the stream is no event.
    if (typeof streamId === "string" && !event.includes(":")) emit(event, { ...fields, queue: this.name, streamId });
    return super.emit(event, fields, streamId);
  }
}

// From the stream's beginning: no event is missed that is older than this process.
const listeners = settings.queues.map(
  ({ queue, prefix }) => new Listener(queue, { ...options(prefix), lastEventId: "0-0" }),
);
for (const listener of listeners) listener.on("error", report);
await Promise.all(listeners.map((listener) => listener.waitUntilReady()));
await serve({}, () => Promise.all(listeners.map((listener) => listener.close())));
