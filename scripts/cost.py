#!/usr/bin/env python3
"""What a million events cost: the counts that the tests keep (tests/data/counts.json), times AWS's list prices.

    scripts/cost.py                    the table of docs/cost.md
    scripts/cost.py --events 300000 --batch 2 --memory 128 --scenario "a renewal"
"""

import argparse
import json
import pathlib

COUNTS = pathlib.Path(__file__).parent.parent / "tests" / "data" / "counts.json"

# us-east-1, list, without free tier, in dollars; arm64. Check them against AWS's pages before you quote the result.
PRICES = {
    "api request": 1.00 / 1e6,            # HTTP API, up to 512 KB
    "lambda request": 0.20 / 1e6,
    "lambda GB-second": 13.3334 / 1e6,
    "sqs request": 0.40 / 1e6,            # each started 64 KB
    "write unit": 0.625 / 1e6,            # on demand
    "read unit": 0.125 / 1e6,
    "log GB": 0.50,
}

# One trigger polls its queue with five connections, 20 s each, whether anything comes or not.
POLLS_PER_MONTH = 5 * 30 * 86_400 / 20


def million(counts, scenario, options):
    """Dollars for a million events, item by item."""
    webhook, worker = counts["webhook"], counts[scenario]
    events, batch = 1e6, options.batch
    chunks = -(-webhook["request_bytes"] // 65_536)
    gb = options.memory / 1024
    return {
        "HTTP API": 0 if options.function_url else events * PRICES["api request"],
        "Lambda, requests": events * (1 + 1 / batch) * PRICES["lambda request"],
        "Lambda, time": events * gb * (options.webhook_ms + options.worker_ms / batch) / 1000 * PRICES["lambda GB-second"],
        "SQS": events * (chunks * (1 + 1 / batch) + 1 / batch + worker["calls"].get("SendMessage", 0)) * PRICES["sqs request"],
        "DynamoDB, writes": events * worker["write_units"] * PRICES["write unit"],
        "DynamoDB, reads": events * worker["read_units"] * PRICES["read unit"],
        "logs": events * options.log_bytes / 1e9 * PRICES["log GB"],
    }


def main():
    counts = json.loads(COUNTS.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=float, default=1e6, help="events a month")
    parser.add_argument("--batch", type=float, default=10, help="events in a batch, on average: 1 when little happens, 10 when much does")
    parser.add_argument("--memory", type=int, default=256, help="MB of the functions")
    parser.add_argument("--webhook-ms", type=float, default=10, help="billed for a request: yours is the metric Duration")
    parser.add_argument("--worker-ms", type=float, default=25, help="billed for a batch")
    parser.add_argument("--log-bytes", type=float, default=0, help="logged for an event, all functions: 800 at LOG_LEVEL=info, 0 at warn")
    parser.add_argument("--function-url", action="store_true", help="Stripe sends to the webhook's own URL (FunctionUrlConcurrency), which is not charged for")
    parser.add_argument("--queues", type=int, default=10, help="queues with a trigger")
    parser.add_argument("--scenario", choices=[name for name in counts if isinstance(counts[name], dict) and name != "webhook"], default="a year of a subscriber")
    options = parser.parse_args()

    items = million(counts, options.scenario, options)
    print(f"{options.scenario}, batches of {options.batch:g}, {options.memory} MB: dollars per million events")
    for name, dollars in items.items():
        print(f"  {name:18} {dollars:6.2f}")
    total, idle = sum(items.values()), options.queues * POLLS_PER_MONTH * PRICES["sqs request"]
    print(f"  {'together':18} {total:6.2f}")
    print(f"idle: {options.queues} queues are polled {POLLS_PER_MONTH:,.0f} times a month each: {idle:.2f} a month")
    print(f"{options.events:,.0f} events a month: {total * options.events / 1e6 + idle:.2f}, tables' storage and alarms not counted")


if __name__ == "__main__":
    main()
