// Sends all dead letters back to their queue with nothing but BullMQ, the oldest first. `claudejobs replay` does more:
// it gives jobs the ids that they had.
//
//   node send-back.js
//
// Environment: REDIS_URL (redis://127.0.0.1:6379), QUEUE (claude-tasks), PREFIX (bull).

import { Queue } from "bullmq";

const { REDIS_URL = "redis://127.0.0.1:6379", QUEUE = "claude-tasks", PREFIX } = process.env;
const options = { connection: { url: REDIS_URL }, ...(PREFIX && { prefix: PREFIX }) };
const queue = new Queue(QUEUE, options);
const dead = new Queue(`${QUEUE}-dead-letter`, options);

for (;;) {
  const letters = await dead.getWaiting(0, 99);
  if (letters.length === 0) break;
  for (const letter of letters) {
    // Under the letter's id: one that is sent twice, because this was cut off before it removed it, is run once.
    await queue.add(letter.name, letter.data, letter.opts);
    await letter.remove();
    console.log(letter.id);
  }
}
await queue.close();
await dead.close();
