#!/usr/bin/env python3
"""Runs the README's commands that invoke one function with cargo-lambda, and checks the account.

cargo-lambda must be in the path, and the ports 9000, 9001 and 9100 must be free: the README's commands use
them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import stack

USER = "user_123"  # of events/lambda/invoice-paid.json
TIER = "free"  # the month that its invoice pays ended in February 2026
PORT = 9100  # of cargo lambda watch
MAX_SECONDS = 900  # cargo lambda watch compiles the function at the first invocation


def commands():
    """The exports, the command that runs in the background, and the invocation."""
    text = (stack.ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"cargo-lambda installed.*?```sh\n(.*?)```", text, re.DOTALL).group(1)
    before, watch, after = block.partition(next(line for line in block.splitlines() if line.endswith(" &")))
    return before, watch.removesuffix(" &"), before + after


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main():
    for port in (9000, 9001, PORT):
        if listens(port):
            sys.exit(f"invoke: port {port} is in use")
    before, watch, invoke = commands()
    with stack.Stack(port=9000, aws_port=9001) as local:
        local.build()
        local.start()
        watcher = subprocess.Popen(["bash", "-c", f"{before}exec {watch}"], cwd=stack.ROOT,
                                   start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            started = time.monotonic()
            while not listens(PORT):
                if watcher.poll() is not None or time.monotonic() - started > MAX_SECONDS:
                    sys.exit(f"invoke: {watch} does not listen on port {PORT}")
                time.sleep(0.2)
            done = subprocess.run(["bash", "-ec", invoke], cwd=stack.ROOT, capture_output=True, text=True,
                                  timeout=MAX_SECONDS)
            print(f"    cargo lambda invoke: {(done.stdout + done.stderr).strip()}")
            if done.returncode or json.loads(done.stdout) != {"batchItemFailures": []}:
                sys.exit("invoke: the function did not accept the event")
            found = stack.Client(local.url).tier_and_credits(USER)
            print(f"    {USER}: {found}")
            if found != (TIER, stack.PRO):
                sys.exit("invoke: the event was not applied")
        finally:
            os.killpg(watcher.pid, signal.SIGTERM)
            watcher.wait()


if __name__ == "__main__":
    main()
