#!/usr/bin/env python3
"""Estimates the cost of a million events, from the counts of tests/data/counts.json, and of a month without
events, from the expanded template. Both are multiplied by AWS's list prices.

    scripts/cost.py                    a million events
    scripts/cost.py --events 300000 --batch 2 --memory 128 --scenario "a renewal"
    scripts/cost.py --tables           the tables of docs/cost.md
    scripts/cost.py --check            fails if docs/cost.md shows others

The last two need aws-sam-translator: run them with .check/sam/bin/python.
"""

import argparse
import json

import shared
from shared import ROOT

COUNTS = ROOT / "tests" / "data" / "counts.json"

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
    "alarm metric": 0.10,                 # a month; an alarm over nine metrics costs nine times as much
    "own metric": 0.30,                   # a month in which it has a value every hour
    "dashboard": 3.00,                    # a month
    "metric read": 0.01 / 1000,           # GetMetricData: the age of one queue, while it holds messages
}

# What AWS gives every account each month, for good.
FREE = {"sqs request": 1e6, "alarm metric": 10, "own metric": 10}

# The metrics that `health` writes every hour in a deployment without events and without a Stripe key.
HOURLY_METRICS = ["HealthScore", "Parked", "Failed", "Waiting"]

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


def idle():
    """The rows of a month without events: what, how much of it, what it buys, and which price."""
    from expanded import Stack  # pylint: disable=import-outside-toplevel
    stack = Stack()
    alarms = stack.of_type("AWS::CloudWatch::Alarm").values()
    metrics = sum(sum("MetricStat" in query for query in alarm.get("Metrics", [])) or 1 for alarm in alarms)
    queues = len(stack.of_type("AWS::Lambda::EventSourceMapping"))
    dashboards = len(stack.of_type("AWS::CloudWatch::Dashboard"))
    return [
        (f"{queues} queues with a trigger: polls", queues * POLLS_PER_MONTH, "sqs request",
         "an event is processed within a second, and no family delays another"),
        (f"{len(alarms)} alarms over {metrics} metrics", metrics, "alarm metric",
         "every fault of `operating.md` is noticed within its minutes"),
        (f"{len(HOURLY_METRICS)} metrics of `health`", len(HOURLY_METRICS), "own metric",
         "the health score, and what waits for a person"),
        (f"{dashboards} CloudWatch dashboard", dashboards, "dashboard",
         "graphs of all of this; `CloudWatchDashboard=false` saves it"),
    ]


def idle_table():
    yield "| a month without events | list price | less what is free | what it buys |"
    yield "|---|---|---|---|"
    totals = [0, 0]
    for what, count, price, buys in idle():
        dollars = [count * PRICES[price], max(0, count - FREE.get(price, 0)) * PRICES[price]]
        totals = [total + each for total, each in zip(totals, dollars)]
        yield f"| {what} | ${dollars[0]:.2f} | ${dollars[1]:.2f} | {buys} |"
    yield f"| **together** | **${totals[0]:.2f}** | **${totals[1]:.2f}** | |"


def ages():
    """What the ages of the oldest messages cost, if the families' queues hold messages in every hour."""
    from expanded import Stack  # pylint: disable=import-outside-toplevel
    function = Stack().of_type("AWS::Lambda::Function")["HealthFunction"]
    others = {"QUEUE_URL_PROVISION", "QUEUE_URL_NOTIFY", "QUEUE_URL_DEAD_LETTER"}
    queues = len([name for name in function["Environment"]["Variables"]
                  if name.startswith("QUEUE_URL_") and name not in others])
    dollars = queues * 24 * 30 * PRICES["metric read"]
    return f"${dollars:.2f} a month if {queues} queues hold messages in every hour."


def million_table(counts, scenario, options):
    """The table of a million events, at high and at low load."""
    columns = [million(counts, scenario, argparse.Namespace(**{**vars(options), "batch": batch}))
               for batch in (10, 1)]
    worker = counts[scenario]
    texts = {
        "HTTP API": "HTTP API, 1 request",
        "Lambda, requests": "Lambda, 1.1 and 2 requests",
        "Lambda, time": "Lambda, time at 256 MB: 10 ms a request, 25 ms a batch",
        "SQS": "SQS: 1 send, and 1 receive and 1 delete for each batch",
        "DynamoDB, writes": f"DynamoDB, {worker['write_units']} write units",
        "DynamoDB, reads": f"DynamoDB, {worker['read_units']} read units",
    }
    yield "| | batches of 10 | batches of 1 |"
    yield "|---|---|---|"
    for name, text in texts.items():
        yield f"| {text} | ${columns[0][name]:.2f} | ${columns[1][name]:.2f} |"
    yield "| **together** | " + " | ".join(f"**${sum(column.values()):.2f}**" for column in columns) + " |"


def main():
    counts = json.loads(COUNTS.read_text())
    parser = shared.parser(__doc__)
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
    parser.add_argument("--tables", action="store_true", help="the tables of docs/cost.md")
    parser.add_argument("--check", action="store_true", help="compare them with docs/cost.md")
    scenarios = [name for name in counts if isinstance(counts[name], dict) and name != "webhook"]
    parser.add_argument("--scenario", choices=scenarios, default="a year of a subscriber")
    options = parser.parse_args()
    if options.tables or options.check:
        lines = [*million_table(counts, options.scenario, options), "", *idle_table(), "", ages()]
        missing = shared.lacks("docs/cost.md", lines)
        if options.check and missing:
            raise SystemExit("\n".join(missing))
        if options.tables:
            print("\n".join(lines))
        return

    items = million(counts, options.scenario, options)
    print(f"{options.scenario}, batches of {options.batch:g}, {options.memory} MB: dollars per million")
    for name, dollars in items.items():
        print(f"  {name:18} {dollars:6.2f}")
    total = sum(items.values())
    print(f"  {'together':18} {total:6.2f}")
    month = total * options.events / 1e6
    print(f"{options.events:,.0f} events a month: {month:.2f}, besides storage and an idle month's costs")


if __name__ == "__main__":
    main()
