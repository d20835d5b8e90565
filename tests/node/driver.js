// What the scripts beside this one have in common: they are driven by lines of JSON.
//
//   first argument   settings: {"version": "6" | "5", "connection": ..., and what the script itself reads}
//   standard input   {"id": 1, "command": "add", ...arguments}; its end ends the script
//   standard output  {"id": 1, "answer": ...} or {"id": 1, "error": "message"}, in the order in which they are known;
//                    {"event": "NAME", ...} at any time, the first one being {"event": "ready"}

import { createInterface } from "node:readline";
import { Cluster, Redis } from "ioredis";

export const settings = JSON.parse(process.argv[2]);

const PACKAGES = { 5: "bullmq5", 6: "bullmq" };

/** The bullmq of the version that was asked for. */
export const bullmq = await import(PACKAGES[settings.version]);

/** BullMQ's options of a queue: the connection, and the prefix where one is given. */
export function options(prefix) {
  return { connection: connection(), ...(prefix && { prefix }) };
}

// A list of nodes means a Redis Cluster; all else are ioredis's own options, Sentinel's among them.
function connection() {
  const { cluster, ...redis } = settings.connection;
  return cluster ? new Cluster(cluster, { redisOptions: { ...redis, maxRetriesPerRequest: null } }) : redis;
}

/** The id of the last event of a queue: a listener that starts there misses none, whenever it reads first. */
export async function lastEventId(queue, prefix = "bull") {
  const redis = settings.connection.cluster ? connection() : new Redis(connection());
  const [last] = await redis.xrevrange(`${prefix}:${queue}:events`, "+", "-", "COUNT", 1);
  redis.disconnect();
  return last?.[0] ?? "0-0";
}

export function emit(event, fields = {}) {
  process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);
}

/** Report an error of a connection, which is no reason to end: Redis comes back. */
export function report(error) {
  process.stderr.write(`${error.stack}\n`);
}

/**
 * Say that the script is ready, and carry out commands until standard input ends or SIGTERM comes; then close.
 *
 * @param commands functions by name, each given the fields of its line
 * @param close ends all connections
 */
export async function serve(commands, close) {
  const lines = createInterface({ input: process.stdin });
  process.once("SIGTERM", () => lines.close());
  emit("ready");
  for await (const line of lines) carryOut(commands, JSON.parse(line));
  await close();
  process.exit(0); // a job that is waited for must not keep the process
}

async function carryOut(commands, { id, command, ...fields }) {
  let answer;
  try {
    if (!(command in commands)) throw new Error(`no command ${command}; there are ${Object.keys(commands)}`);
    answer = { id, answer: (await commands[command](fields)) ?? null };
  } catch (error) {
    answer = { id, error: error.message };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
