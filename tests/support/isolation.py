"""What a hostile job tries, what must come of it and by which layer; writes the table of docs/security.md.

``python -m tests.support.isolation`` writes the table anew, with ``--check`` it only compares. That the outcomes are
true is shown by tests/e2e/test_isolation.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

POLICY = "NetworkPolicy of the chart"
LANDLOCK = "Landlock of the agent's process"
UNREADABLE = "program without read permission, which the kernel lets nobody look into"
NO_CAPABILITIES = "no capabilities"


@dataclass(frozen=True)
class Try:
    """One attempt to get out.

    Attributes:
        key: names it in the hostile script.
        what: for the reader of the table.
        outcome: what the script must report, exactly.
        layer: what stopped it.
    """

    key: str
    what: str
    outcome: str
    layer: str


NETWORK = (
    Try("api-service", "API server by its Service", "timed out", POLICY),
    Try("api-node", "API server by the node's address", "timed out", POLICY),
    Try("kubelet", "kubelet of the node", "timed out", POLICY),
    Try("metadata", "cloud metadata, 169.254.169.254", "timed out", POLICY),
    Try("pod", "pod of another namespace", "timed out", POLICY),
    Try("private", "host of another tenant in a private network", "timed out", POLICY),
    Try("internet-http", "host on the internet, another port than 443", "timed out", POLICY),
    Try("operator", "operator", "timed out", POLICY),
    Try("redis", "Redis", "timed out", POLICY),
    Try("postgresql", "PostgreSQL", "timed out", POLICY),
    Try("model", "model API past the gateway", "timed out", POLICY),
)
ALLOWED = (
    Try("internet-https", "host on the internet, port 443", "connected", "none: allowed by the chart's default"),
    Try("gateway", "model gateway", "connected", "none: what the job is for; its token ends with the pod"),
)
INSIDE = (
    Try("sa-token", "service-account token of the API server", "ENOENT", "automountServiceAccountToken: false"),
    Try("key-env", "model key in the environment", "absent", "model gateway"),
    Try("key-files", "model key in files", "absent", "model gateway"),
    Try("key-proc", "model key in all of /proc", "absent", "model gateway"),
    Try("runner-environ", "environment of the runner", "EACCES", "runner not dumpable, Landlock"),
    Try("runner-memory", "memory of the runner", "EACCES", "runner not dumpable, Landlock"),
    Try("init-environ", "environment of PID 1", "EACCES", f"{UNREADABLE}; Landlock"),
    Try("agent-memory", "memory of the agent's CLI", "EACCES", UNREADABLE),
    Try("forge-runner", "event lines on the runner's output", "EACCES", "runner not dumpable, Landlock"),
    Try("forge-init", "event lines on PID 1's output", "EACCES", f"{UNREADABLE}; Landlock"),
    Try("forge-agent", "answers in the CLI's place", "EACCES", UNREADABLE),
    Try("forge-termination", "termination message", "EACCES", LANDLOCK),
    Try("kill-runner", "signal to the runner", "EPERM", LANDLOCK),
    Try("kill-init", "signal to PID 1", "EPERM", LANDLOCK),
    Try("ptrace", "ptrace of the runner", "EPERM", f"{NO_CAPABILITIES}, runner not dumpable, Landlock"),
    Try("host-socket", "container runtime's socket", "ENOENT", "no host paths"),
    Try("host-kubelet", "kubelet's folder", "ENOENT", "no host paths"),
    Try("host-sysctl", "kernel settings (/proc/sys)", "EACCES", "not root, read-only /proc/sys, Landlock"),
    Try("host-device", "block device of the node (mknod)", "EPERM", NO_CAPABILITIES),
    Try("mount", "mount", "EPERM", f"{NO_CAPABILITIES}, seccomp"),
    Try("unshare", "user namespace of its own", "EPERM", "seccomp RuntimeDefault"),
    Try("raw-socket", "raw socket", "EPERM", NO_CAPABILITIES),
    Try("setuid", "become root", "EPERM", f"{NO_CAPABILITIES}, no privilege escalation"),
    Try("chroot", "chroot", "EPERM", NO_CAPABILITIES),
    Try("write-etc", "write to /etc", "EACCES", "not root, read-only root file system, Landlock"),
    Try("write-program", "write to the runner's programs", "EACCES", "not root, read-only root file system, Landlock"),
    Try("write-input", "write to the job's input", "EACCES", "read-only volume, Landlock"),
)
CONTAINED = (
    Try("forks", "fork without end", "EAGAIN", "kubelet's podPidsLimit"),
    Try("memory", "more memory than the limit", "killed", "memory limit of the container"),
    Try("disk", "fill the disk", "evicted", "sizeLimit of each volume: the kubelet evicts the pod"),
    Try("survive", "go on after the job's end (double fork, setsid)", "gone", "runner's sweep, end of the container"),
)


def table() -> str:
    """The table in Markdown."""
    rows = ["| tried | outcome | stopped by |", "| --- | --- | --- |"]
    for group in (NETWORK, ALLOWED, INSIDE, CONTAINED):
        rows += [f"| {one.what} | {one.outcome} | {one.layer} |" for one in group]
    return "\n".join(rows)


def page(text: str) -> str:
    """The page with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> int:
    """Write the page, or compare it."""
    text = PAGE.read_text()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(text))
    elif page(text) != text:
        sys.stderr.write("docs/security.md has not the table of tests/support/isolation.py; run `make docs`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
