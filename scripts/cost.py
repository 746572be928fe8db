#!/usr/bin/env python3
"""Estimates the cost of a million events: the counts of tests/data/counts.json times AWS's list prices.

    scripts/cost.py                    the table of docs/cost.md
    scripts/cost.py --events 300000 --batch 2 --memory 128 --scenario "a renewal"
"""

import argparse
import json
import pathlib

COUNTS = pathlib.Path(__file__).parent.parent / "tests" / "data" / "counts.json"

# List prices of us-east-1 in dollars, arm64, without free tier. Check them on AWS's pages before you quote a
# result.
PRICES = {
    "api request": 1.00 / 1e6,            # HTTP API, up to 512 KB
    "lambda request": 0.20 / 1e6,
    "lambda GB-second": 13.3334 / 1e6,
    "sqs request": 0.40 / 1e6,            # per started 64 KB
    "write unit": 0.625 / 1e6,            # on demand
    "read unit": 0.125 / 1e6,
    "log GB": 0.50,
}

# A trigger polls its queue with five connections of 20 s each, with or without messages.
POLLS_PER_MONTH = 5 * 30 * 86_400 / 20


def million(counts, scenario, options):
    """Dollars for a million events, item by item."""
    webhook, worker = counts["webhook"], counts[scenario]
    events, batch = 1e6, options.batch
    milliseconds = options.webhook_ms + options.worker_ms / batch
    chunks = -(-webhook["request_bytes"] // 65_536)
    requests = chunks * (1 + 1 / batch) + 1 / batch + worker["calls"].get("SendMessage", 0)
    gb = options.memory / 1024
    return {
        "HTTP API": 0 if options.function_url else events * PRICES["api request"],
        "Lambda, requests": events * (1 + 1 / batch) * PRICES["lambda request"],
        "Lambda, time": events * gb * milliseconds / 1000 * PRICES["lambda GB-second"],
        "SQS": events * requests * PRICES["sqs request"],
        "DynamoDB, writes": events * worker["write_units"] * PRICES["write unit"],
        "DynamoDB, reads": events * worker["read_units"] * PRICES["read unit"],
        "logs": events * options.log_bytes / 1e9 * PRICES["log GB"],
    }


def main():
    counts = json.loads(COUNTS.read_text())
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=float, default=1e6, help="events a month")
    parser.add_argument("--batch", type=float, default=10,
                        help="events per batch: 1 at low load, 10 at high load")
    parser.add_argument("--memory", type=int, default=256, help="MB of the functions")
    parser.add_argument("--webhook-ms", type=float, default=10,
                        help="billed per request; see your metric Duration")
    parser.add_argument("--worker-ms", type=float, default=25, help="billed per batch")
    parser.add_argument("--log-bytes", type=float, default=0,
                        help="logged per event by all functions: 800 at LOG_LEVEL=info, 0 at warn")
    parser.add_argument("--function-url", action="store_true",
                        help="Stripe uses the webhook's own URL (FunctionUrlConcurrency), which has no price")
    parser.add_argument("--queues", type=int, default=10, help="queues with a trigger")
    scenarios = [name for name in counts if isinstance(counts[name], dict) and name != "webhook"]
    parser.add_argument("--scenario", choices=scenarios, default="a year of a subscriber")
    options = parser.parse_args()

    items = million(counts, options.scenario, options)
    print(f"{options.scenario}, batches of {options.batch:g}, {options.memory} MB: dollars per million")
    for name, dollars in items.items():
        print(f"  {name:18} {dollars:6.2f}")
    total, idle = sum(items.values()), options.queues * POLLS_PER_MONTH * PRICES["sqs request"]
    print(f"  {'together':18} {total:6.2f}")
    print(f"idle: {options.queues} queues, {POLLS_PER_MONTH:,.0f} polls a month each: {idle:.2f}")
    month = total * options.events / 1e6 + idle
    print(f"{options.events:,.0f} events a month: {month:.2f} without storage and alarms")


if __name__ == "__main__":
    main()
