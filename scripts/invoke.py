#!/usr/bin/env python3
"""Runs the commands by which the README has cargo-lambda invoke one function against the running stack, and looks at what it did.

    scripts/invoke.py       cargo-lambda must be in the path, and the ports 9000, 9001 and 9100 free
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
USER = "user_123"  # of events/lambda/invoice-paid.json
PATIENCE = 900  # seconds: cargo lambda watch compiles the function at the first invocation


def commands():
    """The exports, the command that goes on in the background, and the invocation."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"With cargo-lambda installed.*?```sh\n(.*?)```", text, re.DOTALL).group(1)
    before, watch, after = block.partition(next(line for line in block.splitlines() if line.endswith(" &")))
    return before, watch.removesuffix(" &"), before + after


def need_free(*ports):
    """Whoever answers there would be taken for what is started here."""
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                sys.exit(f"invoke: something listens on port {port}, which the README's commands use; stop it first")


def wait_for(port, process):
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            sys.exit(f"invoke: {process.args} ended with {process.returncode}")
        time.sleep(0.2)
    sys.exit(f"invoke: nothing listens on port {port}")


def account():
    request = urllib.request.Request(f"http://127.0.0.1:9000/users/{USER}", headers={"authorization": "Bearer app-local"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def main():
    need_free(9000, 9001, 9100)
    before, watch, invoke = commands()
    subprocess.run(["cargo", "build", "--quiet", "--bin", "tallyhook"], cwd=ROOT, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    started = []
    with tempfile.TemporaryDirectory() as data:
        try:
            stack = [str((ROOT / target / "debug" / "tallyhook").resolve()), "--data", data]
            for command, port in ((stack, 9000), (["bash", "-c", f"{before}exec {watch}"], 9100)):
                started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True))
                wait_for(port, started[-1])
            done = subprocess.run(["bash", "-ec", invoke], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
            print(f"    cargo lambda invoke: {(done.stdout + done.stderr).strip()}")
            if done.returncode or json.loads(done.stdout) != {"batchItemFailures": []}:
                sys.exit("invoke: the function did not take the event")
            found = account()
            print(f"    {USER}: {found['tier']}, {found['credits']} credits")
            if found["credits"] != 5000:
                sys.exit("invoke: the event was not applied")
        finally:
            for process in started:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()


if __name__ == "__main__":
    main()
