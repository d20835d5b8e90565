"""Does what the job's prompt names, instead of running an agent."""

import json
import os
import sys
import time
from pathlib import Path

prompt = json.loads(Path("/etc/claudejobs/job.json").read_text())["prompt"]
termination = Path("/dev/termination-log")

match prompt:
    case "garbage":
        os.write(1, bytes(range(256)) * 64 + b"\n{not json}\n" + b'{"v":1,"type":"nothing","seq":1}\n')
        sys.exit(7)
    case "garbage result":
        termination.write_bytes(b'{"version":1,"outcome":"\xff\xfe')
        sys.exit(0)
    case "long line":
        sys.stdout.write("x" * 10_000_000 + "\n")
        sys.stdout.flush()
        sys.exit(9)
    case "nothing":
        sys.exit(0)
    case "memory":
        print(len(bytearray(2_000_000_000)))
    case "deaf":
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    case counting if counting.startswith("count "):
        # Prints so many long lines at once, then short ones until it is told to stop.
        number = int(counting.split()[1])
        print("\n".join(f"line {n} {'x' * 1000}" for n in range(1, number + 1)), flush=True)
        while not Path("/workspace/stop").exists():
            number += 1
            print(f"line {number}", flush=True)
            time.sleep(0.01)
        termination.write_text(json.dumps({"version": 1, "outcome": "completed"}))
    case _:
        sys.exit(f"unknown: {prompt}")
