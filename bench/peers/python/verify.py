"""The CPU of one signature check of stripe-python, best of many batches. Compare with ../../micro."""

import hashlib
import hmac
import json
import pathlib
import time

import stripe

SECRET = "whsec_bench"
SAMPLE = pathlib.Path(__file__).parents[3] / "events" / "invoice.paid.renewal.json"


def best(call):
    least = float("inf")
    for _ in range(100):
        before = time.process_time()
        for _ in range(50):
            call()
        least = min(least, (time.process_time() - before) / 50)
    return f"{least * 1e6:.1f}"


for size in (4096, 65_536):
    event = json.loads(SAMPLE.read_text(encoding="utf-8"))
    event["data"]["object"]["footer"] = ("Thank you. " * size)[: size - len(json.dumps(event))]
    payload, t = json.dumps(event), int(time.time())
    header = f"t={t},v1={hmac.new(SECRET.encode(), f'{t}.{payload}'.encode(), hashlib.sha256).hexdigest()}"
    verify = best(lambda: stripe.WebhookSignature.verify_header(payload, header, SECRET, 300))
    construct = best(lambda: stripe.Webhook.construct_event(payload, header, SECRET))
    print(f"| stripe-python, {size} bytes: `verify_header`, `construct_event` | {verify} µs, {construct} µs |")
