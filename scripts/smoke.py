#!/usr/bin/env python3
"""Sends signed events to a stack over HTTP and checks the accounts.

    scripts/smoke.py                     starts the local stack on free ports with an empty data folder
    scripts/smoke.py --real-binaries     the same with the compiled functions
    scripts/smoke.py --url URL           uses a running stack
    scripts/smoke.py --url URL --webhook-url URL      sends the events to the webhook's own URL
"""

import json
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import shared
import stack
from stack import PACK, PRO, SIGNUP, Client, Customer, check, eventually, request, signature, stays


def arguments():
    parser = shared.parser(__doc__)
    parser.add_argument("--url", help="base URL of a running stack, for example http://127.0.0.1:9000")
    parser.add_argument("--webhook-url", help="base URL of the webhook, if it differs")
    parser.add_argument("--real-binaries", action="store_true",
                        help="start the stack with the compiled functions")
    parser.add_argument("--secret", default="whsec_local")
    parser.add_argument("--token", default="app-local")
    parser.add_argument("--wait-seconds", type=float, default=30, help="how long an event may take")
    return parser.parse_args()


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
    eventually("the user has the free tier and the signup credits", ("free", SIGNUP), look, wait)

    for name in ("checkout.session.completed", "customer.subscription.created", "invoice.paid"):
        check(f"{name} is accepted", client.post(customer.event(name)) == (200, {"received": True}),
              "not 200")
    eventually("paid: tier pro and the plan's credits", ("pro", PRO), look, wait)

    body = customer.event("invoice.paid")
    ledger = client.ledger(customer.user)
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: client.post(body)[0], range(10)))
    check("ten duplicates at once are accepted", answers == [200] * 10, answers)
    stays("and change nothing", ("pro", PRO), look)
    check("and change no ledger entry",  client.ledger(customer.user) == ledger, (ledger,
                                                                         client.ledger(customer.user)))

    client.post(customer.event("checkout.session.completed.pack"))
    eventually("a pack adds its credits", ("pro", PRO + PACK), look, wait)
    client.post(customer.event("checkout.session.completed.unpaid"))
    stays("an unpaid session adds none", ("pro", PRO + PACK), look)
    client.post(customer.event("checkout.session.async_payment_succeeded"))
    eventually("until it is paid", ("pro", PRO + 2 * PACK), look, wait)
    check("an unhandled type is accepted too", client.post(customer.event("product.updated"))[0] == 200,
          "not 200")


def older_versions(client, wait):
    print("The same events in the shape of older API versions")
    customer = Customer("old")
    for name in ("old/customer.subscription.created", "old/invoice.paid", "old/checkout.session.completed"):
        client.post(customer.event(name))
    look = lambda: client.tier_and_credits(customer.user)
    eventually("paid: tier pro and the plan's credits", ("pro", PRO), look, wait)


def ids(client):
    print("Ids are taken as they are")
    user = Customer("ids").user
    client.register(user)
    for encoded in ("%3Fx", "%23x", "%252F1", "%20"):
        status = client.account(user + encoded)[0]
        check(f"{user}{encoded} is another user", status == 404, status)
    status, answer = client.register(user + "%2F42")
    check("an id may have a slash", status == 200 and answer.get("user_id") == user + "/42", (status, answer))


def forgeries(client):
    print("Requests that Stripe did not send")
    customer = Customer("forged")
    body = customer.event("invoice.paid")
    now = int(time.time())
    right = signature(body, client.secret)
    compact = json.dumps(json.loads(body), separators=(",", ":"))
    cases = [
        ("no signature", body, None, "missing_signature"),
        ("another secret", body, signature(body, "whsec_another"), "invalid_signature"),
        ("a changed amount", body.replace('"amount_paid": 2000', '"amount_paid": 9000'), right,
         "invalid_signature"),
        ("a truncated body", body[:-20], right, "invalid_signature"),
        ("a body parsed and written again", compact, right, "invalid_signature"),
        ("an hour old", body, signature(body, client.secret, now - 3600), "timestamp_out_of_tolerance"),
        ("an hour ahead", body, signature(body, client.secret, now + 3600), "timestamp_out_of_tolerance"),
        ("an hour old, another secret", body, signature(body, "whsec_another", now - 3600),
         "invalid_signature"),
        ("an empty header", body, "t=,v1=", None),
        ("the right signature of no event", "[]", signature("[]", client.secret), "malformed_event"),
    ]
    for what, text, header, error in cases:
        status, answer = client.post(text, header)
        holds = status == 400 and error in (None, answer.get("error"))
        check(f"{what}: 400 {error or ''}".rstrip(), holds, (status, answer))
    stays("and the account does not exist", 404, lambda: client.tier_and_credits(customer.user))
    check("the right signature is accepted", client.post(body, right)[0] == 200, "not 200")


def other_mode(client):
    print("An event of live mode")
    customer = Customer("live")
    body = customer.event("invoice.paid").replace('"livemode": false', '"livemode": true')
    check("is answered 200", client.post(body)[0] == 200, "not 200")
    stays("and not applied in test mode", 404, lambda: client.tier_and_credits(customer.user))


def check_all(client, wait):
    try:
        healthy(client)
        buying(client, wait)
        older_versions(client, wait)
        ids(client)
        forgeries(client)
        other_mode(client)
    except OSError as error:
        check("the stack answers every request", False, error)


def main():
    options = arguments()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    print(f"signed by stripe {stack.stripe.VERSION}" if stack.stripe else "signed without the package stripe")
    if options.url:
        client = Client(options.url, options.secret, options.token, options.webhook_url)
        return check_all(client, options.wait_seconds)
    with stack.Stack(options.real_binaries) as local:
        local.build()
        local.start()
        return check_all(Client(local.url), options.wait_seconds)


if __name__ == "__main__":
    stack.run(main)
