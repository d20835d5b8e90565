"""Processes are recognised for certain, and mounts are found in the right order."""

import json
import subprocess
import sys
import time
from pathlib import Path

from localcluster import processes, teardown

SLEEP = [sys.executable, "-c", "import time; print('started', flush=True); time.sleep(600)"]


def test_a_started_process_is_found_and_ended(tmp_path: Path) -> None:
    log = tmp_path / "log" / "sleeper.log"
    processes.start(tmp_path, "sleeper", SLEEP, log, tmp_path)
    handle = processes.find(tmp_path, "sleeper")
    assert handle is not None
    deadline = time.monotonic() + 10
    while not log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert log.read_text() == "started\n"
    processes.end([handle], seconds=5)
    assert not handle.alive()
    assert processes.find(tmp_path, "sleeper") is None


def test_a_recycled_pid_is_not_taken_for_ours(tmp_path: Path) -> None:
    with subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL) as other:
        try:
            start = processes.start_time(other.pid)
            assert start is not None
            (tmp_path / "ours.json").write_text(json.dumps({"pid": other.pid, "start": start - 1}))
            assert processes.find(tmp_path, "ours") is None
            processes.end([processes.Handle(other.pid, start - 1)], seconds=0)
            assert other.poll() is None
        finally:
            other.kill()


def test_a_process_that_waits_to_be_collected_does_not_live() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        deadline = time.monotonic() + 10
        while processes.start_time(ended.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert processes.start_time(ended.pid) is None


def test_a_program_name_with_blanks_and_parentheses_is_read(tmp_path: Path) -> None:
    (tmp_path / "42").mkdir()
    fields = ["S", *["0"] * 18, "12345", "0"]
    (tmp_path / "42" / "stat").write_text(f"42 (a) b (c)) {' '.join(fields)}\n")
    assert processes.start_time(42, tmp_path) == 12345


def test_a_damaged_pid_file_names_nobody(tmp_path: Path) -> None:
    for content in ("", "{", "[]", '{"pid": "x"}'):
        (tmp_path / "ours.json").write_text(content)
        assert processes.find(tmp_path, "ours") is None


def test_mounts_are_found_below_a_directory_deepest_first() -> None:
    mountinfo = "\n".join(
        f"1 0 0:1 / {point} rw - tmpfs tmpfs rw"
        for point in ("/", "/state/a", "/state/a/b/c", "/state-other/x", "/state/with\\040blank/d")
    )
    found = teardown.mounts_below(mountinfo, Path("/state"))
    assert {str(path) for path in found} == {"/state/a", "/state/a/b/c", "/state/with blank/d"}
    assert str(found[0]) == "/state/a/b/c"
