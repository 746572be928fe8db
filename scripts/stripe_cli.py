#!/usr/bin/env python3
"""Runs the real Stripe CLI against the fake Stripe of the local stack: from `stripe trigger` to the account.
Use `./check stripe-cli`.

    scripts/stripe_cli.py STRIPE     the binary of the Stripe CLI

`stripe listen` takes the events over its websocket and forwards them to the webhook. The commands are those
of docs/operating.md with --api-key and --api-base.
"""

import os
import re
import signal
import subprocess
import sys
import time

import stack
from stack import PACK, PRO, SIGNUP, Client, check, eventually, request, stays

KEY = "sk_test_tallyhook_local"
WAIT = 30


class Cli:
    """The Stripe CLI with a home folder of its own."""

    def __init__(self, binary, folder, api_base):
        self.binary, self.flags = binary, ["--api-key", KEY, "--api-base", api_base]
        self.env = {"HOME": str(folder), "PATH": os.environ["PATH"], "STRIPE_CLI_TELEMETRY_OPTOUT": "1"}

    def run(self, *arguments):
        """Exit code and output."""
        done = subprocess.run([self.binary, *arguments, *self.flags], env=self.env, capture_output=True,
                              text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    def trigger(self, kind, *flags):
        code, output = self.run("trigger", kind, *flags)
        check(f"stripe trigger {kind} succeeds", code == 0 and "Trigger succeeded" in output, output)

    def listen(self, log, *flags):
        """Starts `stripe listen` and waits until it is ready."""
        command = [self.binary, "listen", "--skip-update", *flags, *self.flags]
        process = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(WAIT * 10):
            if "Ready!" in open(log.name, encoding="utf-8").read() or process.poll() is not None:
                break
            time.sleep(0.1)
        return process


def outcome(client, kind):
    """Status and reason of the newest event of a type in the event log."""
    auth = {"authorization": "Bearer admin-local"}
    _, page = request("GET", f"{client.url}/admin/stripe/webhook-logs?type={kind}&limit=1", headers=auth)
    events = page.get("events", [])
    return (events[0]["status"], events[0]["reason"]) if events else None


def payment_of(api_base, user):
    """The payment intent of the user's checkout."""
    auth = {"authorization": f"Bearer {KEY}"}
    _, page = request("GET", f"{api_base}/v1/checkout/sessions?status=complete", headers=auth)
    return next(each["payment_intent"] for each in page["data"] if each["client_reference_id"] == user)


def triggers(cli, client, api_base):
    print("A checkout of a pack")
    client.register("jo")
    look = lambda: client.tier_and_credits("jo")
    cli.trigger("checkout.session.completed", "--skip", "price", "--remove", "checkout_session:line_items",
                "--add", "checkout_session:line_items[0][price]=price_pack_1000_test",
                "--add", "checkout_session:line_items[0][quantity]=1",
                "--add", "checkout_session:client_reference_id=jo",
                "--add", "checkout_session:metadata.pack=credits_1000",
                "--override", "payment_page_confirm:expected_amount=1000")
    eventually("jo has the credits of the pack", ("free", SIGNUP + PACK), look, WAIT)

    print("Its refund")
    cli.trigger("charge.refunded", "--skip", "payment_intent",
                "--override", f"refund:payment_intent={payment_of(api_base, 'jo')}")
    eventually("takes the credits back", ("free", SIGNUP), look, WAIT)

    print("A subscription")
    cli.trigger("customer.subscription.created", "--skip", "price", "--remove", "subscription:items",
                "--add", "subscription:items[0][price]=price_pro_test",
                "--add", "subscription:metadata.user_id=jo")
    eventually("jo has the plan", ("pro", PRO), look, WAIT)

    print("A paid invoice of a pack")
    client.register("kim")
    cli.trigger("invoice.paid", "--remove", "invoiceitem:amount",
                "--add", "invoiceitem:pricing.price=price_pack_1000_test",
                "--add", "invoice:metadata.user_id=kim")
    eventually("kim has the credits of the pack", ("free", SIGNUP + PACK),
               lambda: client.tier_and_credits("kim"), WAIT)

    print("Bare triggers, which are about a new customer and nothing of the catalog")
    before = look()
    cli.trigger("invoice.paid")
    eventually("invoice.paid is parked", ("parked", "no_user"), lambda: outcome(client, "invoice.paid"), WAIT)
    cli.trigger("charge.refunded")
    cli.trigger("charge.dispute.created")
    for kind in ("charge.refunded", "charge.dispute.created"):
        seen = lambda kind=kind: (outcome(client, kind) or ("not received",))[0] in ("parked", "ignored")
        eventually(f"{kind} is parked or ignored", True, seen, WAIT)
        print(f"       {outcome(client, kind)}")
    stays("and no account changes", before, look)


def stripe_url(log):
    """The address of the stack's Stripe. The stack prints it just after it begins to answer."""
    for _ in range(200):
        if shown := re.search(r"Stripe +(http://127\.0\.0\.1:\d+) ", log.read_text(errors="replace")):
            return shown.group(1)
        time.sleep(0.05)
    raise stack.NoStack("the stack does not print the address of its Stripe")


def run(binary):
    with stack.Stack() as running:
        running.build()
        running.start()
        client = Client(running.url)
        api_base = stripe_url(running.log)
        cli = Cli(binary, running.folder, api_base)
        forward = ["--forward-to", running.url.removeprefix("http://") + "/webhooks/stripe"]

        print("stripe listen")
        code, output = cli.run("listen", *forward)
        check("without types it refuses", code != 0 and "--all-snapshot" in output, output)
        code, output = cli.run("listen", "--print-secret")
        check("it prints the signing secret", output.strip() == "whsec_local", output)

        with open(running.folder / "listen.log", "w", encoding="utf-8") as log:
            listener = cli.listen(log, "--all-snapshot", *forward)
            try:
                text = open(log.name, encoding="utf-8").read()
                if check("with --all-snapshot it is ready", "Ready!" in text, text):
                    triggers(cli, client, api_base)
            finally:
                listener.send_signal(signal.SIGINT)
                listener.wait(timeout=20)
        text = open(log.name, encoding="utf-8").read()
        refused = re.findall(r"\[\d\d\d\]", text)
        check("every forwarded event is answered 200", refused and set(refused) == {"[200]"}, text)


if len(sys.argv) != 2:
    sys.exit(__doc__)
stack.run(lambda: run(sys.argv[1]))
