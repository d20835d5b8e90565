"""BullMQ in and out: queue jobs become ClaudeCodeJobs, and their ends go back to the producers.

``mapping`` and ``plan`` are pure; ``bull`` speaks with Redis; ``consumer`` drives one queue and ``manager`` all of
them. What is to be done is always decided from what Redis and the cluster hold now, never from an event, as with the
jobs themselves: a lost reply, a crash at any instruction, or Redis away costs time only.
"""
