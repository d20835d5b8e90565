"""What runs inside a job's pod: one agent run, told as events on standard output.

``python -m claudejobs.runner`` reads a ``RunnerInput``, runs the Claude Agent SDK, writes ``Event`` lines and
ends with the exit code of the ending's category. Nothing here talks to the cluster.
"""
