#!/usr/bin/env python3
"""Starts the local stack as a user does, sends signed events over HTTP and looks at the accounts.

It knows nothing of the code: only the commands, the routes and the sample events that the documentation names. The
signatures are made by Stripe's own package if it is installed (`pip install stripe`), else by hand from its documentation.

    scripts/smoke.py                     start `cargo run` on free ports with an empty data folder, and kill it on the way
    scripts/smoke.py --real-binaries     the same with the binaries that are shipped
    scripts/smoke.py --url URL           a stack that runs already; the crash test is left out
    scripts/smoke.py --url URL --webhook-url URL      events go to the webhook's own URL
"""

import argparse
import hashlib
import hmac
import json
import os
import pathlib
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

try:
    import stripe
except ImportError:
    stripe = None

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRO, PACK, SIGNUP = 5000, 1000, 500  # what catalog.toml says


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="base URL of a running stack, for example http://127.0.0.1:9000")
    parser.add_argument("--webhook-url", help="base URL of the webhook, where it is another")
    parser.add_argument("--command", default="cargo run --quiet --", help="how to start one (default: %(default)s)")
    parser.add_argument("--build", help="what to run before (default: cargo build of what is needed; empty: nothing)")
    parser.add_argument("--real-binaries", action="store_true", help="pass --real-binaries to the stack")
    parser.add_argument("--port", type=int, default=0, help="HTTP port (default: a free one)")
    parser.add_argument("--aws-port", type=int, default=0, help="port of the AWS endpoint (default: a free one)")
    parser.add_argument("--secret", default="whsec_local")
    parser.add_argument("--token", default="app-local")
    parser.add_argument("--start-seconds", type=float, default=900, help="patience for the first start, which may compile")
    parser.add_argument("--wait-seconds", type=float, default=30, help="patience for an event to be applied")
    parser.add_argument("--crash-seconds", type=float, default=240,
                        help="the same after a crash: a message in flight comes back after its visibility timeout")
    parser.add_argument("--crashes", type=int, default=3, help="how often to kill the stack")
    options = parser.parse_args()
    if options.build is None:
        options.build = "cargo build --bins" if options.real_binaries else "cargo build --bin tallyhook"
    return options


# --- what is counted ------------------------------------------------------------------------------------------------

passed, failed = 0, 0


def check(what, holds, seen=""):
    """Prints one line and counts it. Failing does not stop the run: the lines after it tell more."""
    global passed, failed
    if holds:
        passed += 1
    else:
        failed += 1
    print(f"  {'ok  ' if holds else 'FAIL'} {what}" + ("" if holds else f": {seen}"), flush=True)
    return holds


def eventually(what, expected, look, seconds):
    """Checks that `look()` becomes `expected` within `seconds`, and says how long it took."""
    started = time.monotonic()
    while True:
        seen = look()
        took = time.monotonic() - started
        if seen == expected:
            return check(f"{what} ({took:.1f} s)", True)
        if took > seconds:
            return check(what, False, f"{seen} instead of {expected} after {seconds:.0f} s")
        time.sleep(0.05)


def stays(what, expected, look, seconds=2.0):
    """Checks that `look()` is `expected` for all of `seconds`."""
    end = time.monotonic() + seconds
    while True:
        seen = look()
        if seen != expected:
            return check(what, False, f"{seen} instead of {expected}")
        if time.monotonic() > end:
            return check(what, True)
        time.sleep(0.1)


# --- the stack ------------------------------------------------------------------------------------------------------


class NoStack(Exception):
    """There is nothing to send to."""


class Stack:
    """The local stack as a child process, with every process it starts itself in one group."""

    def __init__(self, options):
        self.options = options
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tallyhook-smoke-"))
        self.log = self.folder / "output.log"
        self.port = options.port or free_port()
        self.aws_port = options.aws_port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self, seconds):
        command = shlex.split(self.options.command)
        command += ["--port", str(self.port), "--aws-port", str(self.aws_port), "--data", str(self.folder / "data")]
        if self.options.real_binaries:
            command.append("--real-binaries")
        print(f"  start: {shlex.join(command)}", flush=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            if self.process.poll() is not None:
                raise NoStack(f"the stack ended with {self.process.returncode} before it answered")
            try:
                if request("GET", self.url + "/webhooks/stripe/health", seconds=2)[0] == 200:
                    print(f"  answers after {time.monotonic() - started:.1f} s", flush=True)
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise NoStack(f"the stack did not answer within {seconds:.0f} s")

    def kill(self):
        """kill -9 for the stack and all that it started."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process = None

    def tail(self):
        """The last lines that the stack printed, for whoever has to find out why something failed."""
        lines = self.log.read_text(errors="replace").splitlines()[-60:] if self.log.exists() else []
        return "The last that the stack printed:\n" + "\n".join("    " + line for line in lines)

    def remove(self):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- HTTP and signatures --------------------------------------------------------------------------------------------


def request(method, url, body=None, headers=None, seconds=30):
    """Status and parsed body. A refusal is an answer like any other; no answer is an OSError."""
    asked = urllib.request.Request(url, data=body, headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=seconds) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            status, text = refusal.code, refusal.read()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, {"text": text.decode(errors="replace")}


def signature(body, secret, at=None):
    at = int(time.time()) if at is None else at
    if stripe is None:
        return f"t={at},v1=" + hmac.new(secret.encode(), f"{at}.{body}".encode(), hashlib.sha256).hexdigest()
    return stripe.WebhookSignature.generate_signature_header(body, secret, at)


class Client:
    def __init__(self, url, options, webhook_url=None):
        self.url, self.secret = url.rstrip("/"), options.secret
        self.webhook = (webhook_url or url).rstrip("/") + "/webhooks/stripe"
        self.auth = {"authorization": f"Bearer {options.token}"}

    def post(self, body, header="sign"):
        """Posts a webhook. `header` is the signature, None for none, or left out to sign it rightly."""
        headers = {"content-type": "application/json; charset=utf-8"}
        if header == "sign":
            header = signature(body, self.secret)
        if header is not None:
            headers["stripe-signature"] = header
        return request("POST", self.webhook, body.encode(), headers)

    def register(self, user):
        return request("PUT", f"{self.url}/users/{user}", b"{}", {**self.auth, "content-type": "application/json"})

    def account(self, user):
        return request("GET", f"{self.url}/users/{user}", headers=self.auth)

    def tier_and_credits(self, user):
        status, account = self.account(user)
        return (account.get("tier"), account.get("credits")) if status == 200 else status

    def ledger(self, user):
        status, answer = request("GET", f"{self.url}/users/{user}/ledger", headers=self.auth)
        return [entry.get("key") for entry in answer.get("entries", [])] if status == 200 else status


class Customer:
    """The sample events, retold about another user with other ids, so that every run has its own."""

    def __init__(self, name):
        self.user = f"smoke_{name}_{secrets.token_hex(4)}"
        self.mark = "Smoke" + secrets.token_hex(5)

    def event(self, name):
        text = (ROOT / "events" / f"{name}.json").read_text(encoding="utf-8")
        return text.replace("user_123", self.user).replace("TallyHook", self.mark)


# --- the checks -----------------------------------------------------------------------------------------------------


def healthy(client):
    print("The webhook's health")
    status, health = request("GET", client.webhook + "/health")
    check("the health route answers", status == 200 and health.get("ok") is True, (status, health))
    check("and shows no secret", client.secret not in json.dumps(health), health)


def buying(client, wait):
    print("A customer buys")
    customer = Customer("buys")
    look = lambda: client.tier_and_credits(customer.user)
    check("an unknown user is 404", look() == 404, look())
    status, answer = client.register(customer.user)
    check("the app registers the user", status in (200, 201), (status, answer))
    eventually("who has the free tier and the signup credits", ("free", SIGNUP), look, wait)

    for name in ("checkout.session.completed", "customer.subscription.created", "invoice.paid"):
        check(f"{name} is taken", client.post(customer.event(name)) == (200, {"received": True}), "not 200")
    eventually("paid: tier pro and the plan's credits", ("pro", PRO), look, wait)

    body = customer.event("invoice.paid")
    ledger = client.ledger(customer.user)
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: client.post(body)[0], range(10)))
    check("ten duplicates at once are all taken", answers == [200] * 10, answers)
    stays("and change nothing", ("pro", PRO), look)
    check("not in the ledger either", client.ledger(customer.user) == ledger, (ledger, client.ledger(customer.user)))

    client.post(customer.event("checkout.session.completed.pack"))
    eventually("a pack adds its credits", ("pro", PRO + PACK), look, wait)
    client.post(customer.event("checkout.session.completed.unpaid"))
    stays("an unpaid session adds none", ("pro", PRO + PACK), look)
    client.post(customer.event("checkout.session.async_payment_succeeded"))
    eventually("until it is paid", ("pro", PRO + 2 * PACK), look, wait)
    check("a type that nothing handles is taken too", client.post(customer.event("product.updated"))[0] == 200, "not 200")


def older_versions(client, wait):
    print("The same events as older API versions write them")
    customer = Customer("old")
    for name in ("old/customer.subscription.created", "old/invoice.paid", "old/checkout.session.completed"):
        client.post(customer.event(name))
    eventually("paid: tier pro and the plan's credits", ("pro", PRO), lambda: client.tier_and_credits(customer.user), wait)


def forgeries(client):
    print("What Stripe did not send")
    customer = Customer("forged")
    body = customer.event("invoice.paid")
    now = int(time.time())
    right = signature(body, client.secret)
    compact = json.dumps(json.loads(body), separators=(",", ":"))
    cases = [
        ("no signature", body, None, "missing_signature"),
        ("another secret", body, signature(body, "whsec_another"), "invalid_signature"),
        ("a changed amount", body.replace('"amount_paid": 2000', '"amount_paid": 9000'), right, "invalid_signature"),
        ("a truncated body", body[:-20], right, "invalid_signature"),
        ("a body parsed and written again", compact, right, "invalid_signature"),
        ("an hour old", body, signature(body, client.secret, now - 3600), "timestamp_out_of_tolerance"),
        ("an hour ahead", body, signature(body, client.secret, now + 3600), "timestamp_out_of_tolerance"),
        ("an hour old, another secret", body, signature(body, "whsec_another", now - 3600), "invalid_signature"),
        ("a header that is none", body, "t=,v1=", None),
        ("rightly signed, but no event", "[]", signature("[]", client.secret), "malformed_event"),
    ]
    for what, text, header, error in cases:
        status, answer = client.post(text, header)
        check(f"{what}: 400 {error or ''}".rstrip(), status == 400 and error in (None, answer.get("error")), (status, answer))
    stays("and nobody has got anything", 404, lambda: client.tier_and_credits(customer.user))
    check("the right signature is taken", client.post(body, right)[0] == 200, "not 200")


def other_mode(client):
    print("An event of live mode")
    customer = Customer("live")
    body = customer.event("invoice.paid").replace('"livemode": false', '"livemode": true')
    check("is answered 200", client.post(body)[0] == 200, "not 200")
    stays("and not applied in test mode", 404, lambda: client.tier_and_credits(customer.user))


def crashes(client, stack, options):
    for number in range(options.crashes):
        delay = (0.0, 0.01, 0.1)[number % 3]
        print(f"kill -9, {delay * 1000:.0f} ms after a 200")
        customer = Customer("crash")
        look = lambda: client.account(customer.user)[1].get("credits")
        body = customer.event("invoice.paid")
        with ThreadPoolExecutor(4) as pool:  # the same event four times, so that some are anywhere on their way
            answers = [future.result()[0] for future in [pool.submit(client.post, body) for _ in range(4)]]
        time.sleep(delay)
        stack.kill()
        check("the event was taken before", answers == [200] * 4, answers)
        stack.start(60)
        eventually("after a restart its credits are there", PRO, look, options.crash_seconds)
        client.post(body)
        stays("once", PRO, look)
        ledger = client.ledger(customer.user)
        check("with one entry in the ledger", isinstance(ledger, list) and len(ledger) == 1, ledger)


def main():
    options = arguments()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    print(f"signed by {'stripe ' + stripe.VERSION if stripe else 'hand: the package stripe is not installed'}")
    stack = None
    try:
        if not options.url:
            if options.build:
                subprocess.run(shlex.split(options.build), cwd=ROOT, check=True, timeout=options.start_seconds)
            stack = Stack(options)
            stack.start(options.start_seconds)
        client = Client(options.url or stack.url, options, options.webhook_url)
        healthy(client)
        buying(client, options.wait_seconds)
        older_versions(client, options.wait_seconds)
        forgeries(client)
        other_mode(client)
        if stack:
            crashes(client, stack, options)
    except (NoStack, OSError, subprocess.SubprocessError) as error:
        check("the stack starts and answers every request", False, error)
    finally:
        if stack:
            if failed:
                print(stack.tail())
            stack.remove()
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
