"""Claude Code jobs on Kubernetes: the operator, the runner inside a job's pod, and the command line."""

__version__ = "0.2.0"
