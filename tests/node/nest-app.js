// A NestJS application with a queue: a service that produces, and a listener of the queue's events. Settings: `queue`,
// `prefix`. The decorators are applied by hand, so that nothing needs to be compiled.

import "reflect-metadata";
import { BullModule, getQueueToken, OnQueueEvent, QueueEventsHost, QueueEventsListener } from "@nestjs/bullmq";
import { Inject, Injectable, Module } from "@nestjs/common";
import { NestFactory } from "@nestjs/core";
import { emit, options, serve, settings } from "./driver.js";

class TaskService {
  constructor(queue, listener) {
    this.queue = queue;
    this.listener = listener;
  }

  async add({ name, data, opts }) {
    return (await this.queue.add(name, data, opts)).id;
  }

  async waitUntilFinished({ jobId, ttl }) {
    await this.listener.queueEvents.waitUntilReady();
    return (await this.queue.getJob(jobId)).waitUntilFinished(this.listener.queueEvents, ttl);
  }
}

const EVENTS = ["waiting", "active", "progress", "completed", "failed", "delayed", "removed"];

class TaskListener extends QueueEventsHost {}
for (const event of EVENTS) {
  TaskListener.prototype[event] = function (fields) {
    emit(event, fields);
  };
  OnQueueEvent(event)(TaskListener.prototype, event, Object.getOwnPropertyDescriptor(TaskListener.prototype, event));
}
QueueEventsListener(settings.queue, { lastEventId: "0-0" })(TaskListener);

Injectable()(TaskService);
Inject(getQueueToken(settings.queue))(TaskService, undefined, 0);
Inject(TaskListener)(TaskService, undefined, 1);

class AppModule {}
Module({
  imports: [
    BullModule.forRoot(options(settings.prefix)),
    BullModule.registerQueue({ name: settings.queue }),
  ],
  providers: [TaskService, TaskListener],
})(AppModule);

const app = await NestFactory.createApplicationContext(AppModule, { logger: false, abortOnError: false });
const tasks = app.get(TaskService);
await tasks.listener.queueEvents.waitUntilReady();
await serve(
  { add: (fields) => tasks.add(fields), waitUntilFinished: (fields) => tasks.waitUntilFinished(fields) },
  () => app.close(),
);
