#!/usr/bin/env python3
"""Checks a deployment from outside: the health route answers with the commit that was deployed, an unsigned
event is refused, and a signed event of a type that no family handles is accepted.

    scripts/after_deploy.py --health-url URL --commit SHA
    scripts/after_deploy.py --health-url URL --secret whsec_…     also sends the signed event

The signed event is recorded as ignored and changes no account, so this may run in live mode."""

import argparse
import hashlib
import hmac
import json
import sys
import time
import urllib.error
import urllib.request


def request(url, body=None, headers=None):
    """Status and JSON of an answer."""
    call = urllib.request.Request(url, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(call, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--health-url", required=True, help="the output WebhookHealthUrl")
    parser.add_argument("--commit", help="the commit that must run")
    parser.add_argument("--secret", help="a signing secret of the deployment, the first of several")
    parser.add_argument("--livemode", action="store_true", help="the signed event is one of live mode")
    options = parser.parse_args()
    failures = []

    def check(what, good, found):
        print(f"    {'ok  ' if good else 'FAIL'} {what}")
        if not good:
            failures.append(f"{what}: {found}")

    status, health = request(options.health_url)
    check("the health route answers", status == 200 and health.get("ok") is True, (status, health))
    if options.commit:
        check(f"commit {options.commit} runs", health.get("commit") == options.commit, health.get("commit"))
    webhook = options.health_url.removesuffix("/health")
    now = int(time.time())
    event = {"id": f"evt_deployed{now}", "object": "event", "api_version": "2025-03-31.basil", "created": now,
             "livemode": options.livemode, "pending_webhooks": 1, "type": "tallyhook.deployed",
             "request": {"id": None, "idempotency_key": None}, "data": {"object": {"object": "deployment"}}}
    body = json.dumps(event).encode()
    status, answer = request(webhook, body)
    check("an unsigned event is refused", status == 400, (status, answer))
    if options.secret:
        key = options.secret.split(",")[0].strip()
        mac = hmac.new(key.encode(), f"{now}.".encode() + body, hashlib.sha256).hexdigest()
        status, answer = request(webhook, body, {"Stripe-Signature": f"t={now},v1={mac}"})
        check("a signed event is accepted", (status, answer) == (200, {"received": True}), (status, answer))
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
