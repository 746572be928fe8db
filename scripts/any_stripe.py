"""Runs tests/any_stripe.rs against localstripe, an independent fake Stripe. Use `./check localstripe`.

localstripe's own command listens on every address and keeps its objects in /tmp. Here it listens on a free
port of the loopback address and keeps nothing."""

import asyncio
import os
import sys

from aiohttp import web
from localstripe import resources
from localstripe.server import app

TEST = ["cargo", "test", "-p", "tests", "--test", "it", "any_stripe::"]


async def main():
    resources.Store.dump_to_disk = lambda store: None
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = "http://127.0.0.1:%d" % runner.addresses[0][1]
    try:
        test = await asyncio.create_subprocess_exec(*TEST, env={**os.environ, "STRIPE_API_BASE": base})
        failed = await test.wait()
    finally:
        await runner.cleanup()
    if not failed and not any(key.startswith("subscription:") for key in resources.store):
        print("localstripe has no subscription, so the test did not use it", file=sys.stderr)
        failed = 1
    return failed


sys.exit(asyncio.run(main()))
