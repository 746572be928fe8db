#!/usr/bin/env python3
"""Simulates faults and says which alarm of template.yaml notices each, after how many minutes.

    scripts/alarms.py            the table of docs/operating.md
    scripts/alarms.py --check    fails if a fault has no alarm, or a late one; if an alarm is not needed; if a
                                 normal day raises one; if docs/operating.md shows another table

Each scenario runs the deployment's queues, functions and schedules in steps of ten seconds, writes the
metrics that SQS, Lambda, API Gateway and our own code would write, and evaluates the alarms of the expanded
template every minute. Names, thresholds, periods, delays and attempts come from the template. What AWS does
is written below, each with its page in AWS's documentation:

- SQS, "Available CloudWatch metrics": ApproximateAgeOfOldestMessage leaves out a message that was received
  three times or more; a message that waits for its next attempt is not visible; NumberOfMessagesSent does not
  count what SQS itself moves to a dead-letter queue, NumberOfMessagesReceived counts it when it is received.
- SQS, "Dead-letter queues": a message that was received maxReceiveCount times moves at the next receive.
- Lambda, "Types of metrics": Errors counts crashes, time-outs and failed starts. A batch that reports failed
  records is a successful invocation. A throttled invocation counts as Throttles only, and its message as
  received.
- API Gateway, "Monitor HTTP API metrics": 4xx, 5xx and Count of an API, without detailed metrics.
- CloudWatch, "Alarm evaluation windows": a sliding window, evaluated every minute. "Configuring how alarms
  treat missing data": an alarm reads some data points more than it evaluates, and fills in missing ones only
  if there are not enough.

It runs in an environment with aws-sam-translator, such as .check/sam."""

import ast
import itertools
import json
import re

import shared
from expanded import ACCOUNT, REGION, Stack
from shared import ROOT

STEP = 10  # seconds
DELAY = 2  # minutes until a data point is there
HOUR = 60

# Metrics of our own that have no alarm, and why. `own_metrics` compares both with the source.
WITHOUT_ALARM = {
    "Duplicate": "a normal outcome",
    "Ignored": "a normal outcome",
    "AppliedAfterSeconds": "contains Stripe's own delay; oldest-message and failed-attempts watch ours",
    "OrdersCreated": "a figure of the business",
    "OrdersReported": "a figure of the business; a call that fails counts in FailedAttempts",
    "Processed": "health writes Quiet, which has the alarm",
    "Parked": "part of HealthScore; each new one counts in ParkedEvents",
    "Failed": "part of HealthScore; each new one passes the dead-letter queue",
    "Missing": "part of HealthScore; FoundMissing has the alarm",
    "Orphaned": "part of HealthScore",
    "PlansWithoutInvoice": "part of HealthScore",
    "Waiting": "part of HealthScore; oldest-message watches the queues",
    "SuccessRate": "part of HealthScore",
}


class Metrics:
    """Sum, maximum and minimum by metric and minute."""

    def __init__(self):
        self.values = {}

    def add(self, namespace, name, dimensions, minute, value):
        by_minute = self.values.setdefault((namespace, name, frozenset(dimensions.items())), {})
        had = by_minute.get(minute)
        by_minute[minute] = ((value, value, value) if had is None else
                             (had[0] + value, max(had[1], value), min(had[2], value)))

    def statistic(self, key, statistic, first, end):
        """One data point over the minutes from `first` to before `end`; None without data."""
        by_minute = self.values.get(key)
        if not by_minute:
            return None
        which, combine = {"Sum": (0, sum), "Maximum": (1, max), "Minimum": (2, min)}[statistic]
        if len(by_minute) < end - first:
            found = [values[which] for minute, values in by_minute.items() if first <= minute < end]
        else:
            found = [by_minute[minute][which] for minute in range(first, end) if minute in by_minute]
        return combine(found) if found else None


class Message:
    """A message of a queue."""

    def __init__(self, body, now):
        self.body, self.sent, self.received, self.visible_at = body, now, 0, now
        self.source = None  # the queue on which its attempts were used up


class World:
    """A deployment, and what is wrong with it. Scenarios change the attributes of the first block."""

    def __init__(self, stack, start_minute):
        self.stack = stack
        self.prefix = stack.parameters["Prefix"]
        # What may be wrong
        self.events_per_hour = 3
        self.webhook = "ok"                  # ok, no_start, queue_down, throttled
        self.request = "event"               # event, wrong_secret, old, thin, other_mode
        self.sent_by_stripe = True           # the endpoint is enabled
        self.work = lambda event, attempt: "ok"  # ok, not_yet, fail, parked
        self.off = set()                     # functions without a trigger
        self.throttled = set()               # functions that Lambda does not start
        self.crashing = set()                # functions that crash, time out or do not start
        self.failing = set()                 # functions that report every record as failed
        self.stripe_key = "ok"               # ok, revoked
        self.alert_queue_down = False
        self.api_requests, self.api_5xx = 1, 0   # per minute, besides the webhook
        self.url_4xx = self.url_5xx = 0      # per minute, at the webhook's own URL
        # Its state
        self.metrics = Metrics()
        self.now = start_minute * 60
        self.next_event, self.number = self.now, 0
        self.missing, self.last_complete = 0, None
        self.last_event = self.minute
        self.parked = self.failed = 0
        self.read_stack()

    def read_stack(self):
        stack = self.stack
        by_arn = {}
        self.queues = {}
        for queue in stack.of_type("AWS::SQS::Queue").values():
            name = queue["QueueName"]
            by_arn[f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"] = name
            redrive = queue.get("RedrivePolicy", {})
            self.queues[name] = {"messages": [], "visibility": queue["VisibilityTimeout"],
                                 "receives": redrive.get("maxReceiveCount"),
                                 "dead": redrive.get("deadLetterTargetArn")}
        for queue in self.queues.values():
            queue["dead"] = by_arn.get(queue["dead"])
        self.consumer, functions = {}, stack.of_type("AWS::Lambda::Function")
        for mapping in stack.of_type("AWS::Lambda::EventSourceMapping").values():
            self.consumer[by_arn[mapping["EventSourceArn"]]] = mapping["FunctionName"]
        self.dead_letter_queue = next(queue["dead"] for queue in self.queues.values() if queue["dead"])
        self.notify_queue = self.name("notify")
        self.families = [queue for queue in self.queues if queue not in
                         (self.dead_letter_queue, self.notify_queue, self.name("provision"))]
        variables = functions["RetryFunction"]["Environment"]["Variables"]
        self.delays = [int(delay) for delay in variables["RETRY_DELAYS_SECONDS"].split(",")]
        self.schedules = {}
        names = [function["FunctionName"] for function in functions.values()]
        by_function = {f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}": name for name in names}
        for rule in stack.of_type("AWS::Events::Rule").values():
            if "ScheduleExpression" in rule:
                rate = re.fullmatch(r"rate\((\d+) (minute|hour)s?\)", rule["ScheduleExpression"])
                count, unit = rate.groups()
                function = by_function[rule["Targets"][0]["Arn"]]
                self.schedules[function] = int(count) * (60 if unit == "hour" else 1)

    def name(self, part):
        return f"{self.prefix}-{part}"

    @property
    def minute(self):
        return self.now // 60

    def count(self, name, value=1):
        """A metric of our own code, in the embedded metric format."""
        self.metrics.add(self.prefix, name, {}, self.minute, value)

    def invoke(self, function):
        """Whether an invocation of this function ran to its end."""
        failed = function in self.crashing
        self.metrics.add("AWS/Lambda", "Invocations", {"FunctionName": function}, self.minute, 1)
        self.metrics.add("AWS/Lambda", "Errors", {"FunctionName": function}, self.minute, int(failed))
        return not failed

    def send(self, queue, body):
        self.queues[queue]["messages"].append(Message(body, self.now))

    def alert(self):
        if self.alert_queue_down:
            self.count("AlertsLost")
        else:
            self.send(self.notify_queue, "alert")

    # The front

    def answer(self, status):
        self.metrics.add("AWS/ApiGateway", "Count", {"ApiId": "HttpApi"}, self.minute, 1)
        for first, metric in (("4", "4xx"), ("5", "5xx")):
            self.metrics.add("AWS/ApiGateway", metric, {"ApiId": "HttpApi"}, self.minute,
                             int(status.startswith(first)))

    def stripe_sends(self):
        function = self.name("stripe-webhook")
        if not self.sent_by_stripe:
            self.missing += 1
            return
        if self.webhook == "no_start":
            self.crashing.add(function)
        if self.webhook == "throttled" or not self.invoke(function):
            self.answer("503")
        elif self.webhook == "queue_down":
            self.answer("503")
        elif self.request == "wrong_secret":
            self.count("SignaturesRefused")
            self.answer("400")
        elif self.request == "old":
            self.count("ClockOffSeconds", 400)
            self.answer("400")
        elif self.request == "thin":
            self.count("MalformedEvents")
            self.answer("400")
        else:
            self.answer("200")
            self.send(self.families[self.number % len(self.families)], "event")
        self.number += 1

    # The queues

    def poll(self, name):
        queue, function = self.queues[name], self.consumer[name]
        if function in self.off:
            return
        for message in [message for message in queue["messages"] if message.visible_at <= self.now]:
            if queue["receives"] is not None and message.received >= queue["receives"]:
                queue["messages"].remove(message)
                message.visible_at, message.received, message.source = self.now, 0, name
                self.queues[queue["dead"]]["messages"].append(message)
                continue
            message.received += 1
            self.metrics.add("AWS/SQS", "NumberOfMessagesReceived", {"QueueName": name}, self.minute, 1)
            message.visible_at = self.now + queue["visibility"]
            if function in self.throttled:
                self.metrics.add("AWS/Lambda", "Throttles", {"FunctionName": function}, self.minute, 1)
                continue
            if not self.invoke(function):
                continue
            delay = self.handle(name, message)
            if delay is None:
                queue["messages"].remove(message)
            else:
                message.visible_at = self.now + delay

    def handle(self, name, message):
        """What the function does with a record: None when it is finished, else the seconds until SQS may
        deliver it again."""
        if name == self.dead_letter_queue:
            if self.consumer[name] in self.failing:
                return self.queues[name]["visibility"]
            if message.source == self.notify_queue:
                self.count("AlertsLost")
            else:
                self.failed += 1
                self.alert()
            return None
        if name == self.notify_queue:
            return self.queues[name]["visibility"] if self.consumer[name] in self.failing else None
        if self.consumer[name] in self.failing:
            outcome = "fail"
        elif name == self.name("provision"):
            outcome = "done"
        else:
            outcome = self.work(message.body, message.received)
        if outcome == "fail":
            self.count("FailedAttempts")
            return self.delays[message.received - 1] if message.received <= len(self.delays) else 0
        if outcome == "not_yet":
            return 5
        if self.request == "other_mode":
            outcome = "other_mode"
        self.count({"ok": "Processed", "parked": "ParkedEvents", "done": "OrdersReported",
                    "other_mode": "OtherMode"}[outcome])
        self.last_event = self.minute
        if outcome == "parked":
            self.parked += 1
            self.alert()
        if outcome == "ok":
            self.send(self.name("provision"), "call")
        return None

    # The schedules

    def scheduled(self, function):
        if function in self.off or not self.invoke(function):
            return
        if function == self.name("health"):
            # The main deductions of tallyhook_core::health.
            unknown = self.last_complete is None or self.minute - self.last_complete > 12 * HOUR
            score = 100 - min(2 * self.parked, 15) - (25 if self.failed > 5 else 3 * self.failed)
            is_broken = self.stripe_key != "ok" or not self.sent_by_stripe
            if is_broken and self.stack.parameters["StripeKeyPath"]:
                score -= 21  # it finds this in the Stripe account
            self.count("HealthScore", score - (5 if unknown else 0))
            if self.stack.parameters["LiveMode"] == "true":  # the catalog's quiet_hours, 24 by default
                self.count("Quiet", int(self.minute - self.last_event >= 24 * HOUR))
        if function == self.name("reconcile") and self.stripe_key == "ok":
            self.last_complete = self.minute
            self.count("FoundMissing", self.missing)
            self.missing = 0  # repaired

    def run_minute(self):
        for function, period in self.schedules.items():
            if self.minute % period == period - 1:  # the last run before a fault at minute 0 is a minute old
                self.scheduled(function)
        for _ in range(60 // STEP):
            while self.next_event <= self.now:
                self.stripe_sends()
                self.next_event += 3600 / self.events_per_hour
            for name, queue in self.queues.items():
                if queue["messages"]:
                    self.poll(name)
            self.now += STEP
        minute = self.now // 60 - 1
        for name, queue in self.queues.items():
            hidden = [message for message in queue["messages"] if message.visible_at > self.now]
            young = [message for message in queue["messages"] if message.received < 3]
            age = max((self.now - message.sent for message in young), default=0)
            visible = len(queue["messages"]) - len(hidden)
            for metric, value in (("ApproximateNumberOfMessagesVisible", visible),
                                  ("ApproximateNumberOfMessagesNotVisible", len(hidden)),
                                  ("ApproximateAgeOfOldestMessage", age)):
                self.metrics.add("AWS/SQS", metric, {"QueueName": name}, minute, value)
        self.metrics.add("AWS/ApiGateway", "Count", {"ApiId": "HttpApi"}, minute, self.api_requests)
        self.metrics.add("AWS/ApiGateway", "5xx", {"ApiId": "HttpApi"}, minute, self.api_5xx)
        webhook = {"FunctionName": self.name("stripe-webhook")}
        self.metrics.add("AWS/Lambda", "Url4xxCount", webhook, minute, self.url_4xx)
        self.metrics.add("AWS/Lambda", "Url5xxCount", webhook, minute, self.url_5xx)


class Alarm:
    """An alarm of the expanded template. A property that the model does not know is an error."""

    KNOWN = {"AlarmName", "AlarmDescription", "AlarmActions", "Namespace", "MetricName", "Dimensions",
             "Statistic", "Period", "ComparisonOperator", "Threshold", "EvaluationPeriods",
             "DatapointsToAlarm", "TreatMissingData", "Metrics"}

    def __init__(self, properties):
        unknown = properties.keys() - self.KNOWN
        if unknown:
            raise SystemExit(f"scripts/alarms.py has no model of {unknown}")
        self.name, self.actions = properties["AlarmName"], properties["AlarmActions"]
        self.threshold, self.missing = properties["Threshold"], properties["TreatMissingData"]
        self.less = {"LessThanThreshold": True,
                     "GreaterThanOrEqualToThreshold": False}[properties["ComparisonOperator"]]
        if self.missing not in ("breaching", "notBreaching"):
            raise SystemExit(f"{self.name}: no model of TreatMissingData {self.missing}")
        self.evaluated = int(properties["EvaluationPeriods"])
        self.needed = int(properties.get("DatapointsToAlarm", self.evaluated))
        self.queries, self.expression = {}, None
        if "Metrics" in properties:
            for query in properties["Metrics"]:
                if "Expression" in query:
                    self.expression = ast.parse(query["Expression"], mode="eval").body
                else:
                    stat = query["MetricStat"]
                    self.queries[query["Id"]] = (self.key(stat["Metric"]), stat["Stat"], stat["Period"])
        else:
            self.expression = ast.parse("m1", mode="eval").body
            self.queries["m1"] = (self.key(properties), properties["Statistic"], properties["Period"])
        periods = {period for _, _, period in self.queries.values()}
        if len(periods) != 1 or len(self.queries) > 10:
            raise SystemExit(f"{self.name}: an alarm has one period and at most ten metrics")
        self.period = periods.pop() // 60
        if self.period * self.evaluated > (7 * 24 * 60 if self.period >= 60 else 24 * 60):
            raise SystemExit(f"{self.name} evaluates more than CloudWatch allows")

    @staticmethod
    def key(metric):
        dimensions = {dimension["Name"]: dimension["Value"] for dimension in metric.get("Dimensions", [])}
        return metric["Namespace"], metric["MetricName"], frozenset(dimensions.items())

    def keys(self):
        return [key for key, _, _ in self.queries.values()]

    def fires(self, metrics, now, eager=False):
        """Whether it is in ALARM at this minute. `eager`: also where CloudWatch may use older data points."""
        read = self.evaluated + 2 if eager or self.missing == "breaching" else self.evaluated
        ends = [now - DELAY + 1 - index * self.period for index in range(read)]
        points = [self.value(self.expression, metrics, end - self.period, end) for end in ends]
        counted = [point for point in points if point is not None][:self.evaluated]
        bad = sum(self.is_bad(point) for point in counted)
        if self.missing == "breaching":
            bad += self.evaluated - len(counted)
        return bad >= self.needed

    def is_bad(self, point):
        return point < self.threshold if self.less else point >= self.threshold

    def value(self, node, metrics, first, end):
        """Metric math, as far as the template uses it."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            key, statistic, _ = self.queries[node.id]
            return metrics.statistic(key, statistic, first, end)
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
            left, right = (self.value(side, metrics, first, end) for side in (node.left, node.right))
            if left is None or right is None:
                return None
            return left + right if isinstance(node.op, ast.Add) else left - right
        if isinstance(node, ast.Call) and node.func.id == "FILL":
            value = self.value(node.args[0], metrics, first, end)
            return node.args[1].value if value is None else value
        if isinstance(node, ast.Call) and ast.unparse(node) in ("MAX(METRICS())", "SUM(METRICS())"):
            values = [metrics.statistic(*query[:2], first, end) for query in self.queries.values()]
            values = [value for value in values if value is not None]
            combine = max if node.func.id == "MAX" else sum
            return combine(values) if values else None
        raise SystemExit(f"{self.name}: scripts/alarms.py has no model of {ast.unparse(node)}")


class Scenario:
    """A fault from minute 0 on: what changes, and within how many minutes a person must know."""

    def __init__(self, text, bound, change, before=3 * HOUR, **parameters):
        self.text, self.bound, self.change, self.before = text, bound, change, before
        self.parameters = parameters

    def run(self, stack, eager=False):
        """The alarms that fire within the bound, each with its first minute."""
        world = World(stack, -self.before)
        alarms = [Alarm(properties) for properties in stack.of_type("AWS::CloudWatch::Alarm").values()]
        first = {}
        while world.minute <= self.bound:
            if world.minute == 0:
                self.change(world)
            world.run_minute()
            if world.minute > 0:
                for alarm in alarms:
                    if alarm.name not in first and alarm.fires(world.metrics, world.minute, eager):
                        first[alarm.name] = world.minute
        return first


def settings(**values):
    """Sets attributes. A set of function names gets the prefix."""
    def change(world):
        for name, value in values.items():
            setattr(world, name, {world.name(part) for part in value} if isinstance(value, set) else value)
    return change


def once(outcome, attempts=1):
    """The next event ends so; later ones are fine. `attempts`: how often it fails."""
    def change(world):
        chosen = []

        def work(body, attempt):
            if attempt == 1 and not chosen:
                chosen.append(body)
                return outcome
            return outcome if chosen and 1 < attempt <= attempts else "ok"

        world.work = work
    return change


WORKERS = {"checkout-session", "customer-subscription", "invoice-paid", "invoice-payment-failed", "refund",
           "charge-dispute", "customer"}
KEY = {"StripeKeyPath": "/tallyhook/stripe-secret-key"}
LIVE = {"LiveMode": "true", "AlarmEmail": "operator@example.com"}
URL = {"FunctionUrlConcurrency": "10"}
DAY = 24 * HOUR


def both(*changes):
    """Several changes at once."""
    def change(world):
        for each in changes:
            each(world)
    return change


# Three events an hour, unless a scenario says otherwise: a small deployment must notice a fault too.
FAULTS = [
    Scenario("S05, S58, S64: DynamoDB or Stripe's API is throttled or down; every attempt fails", 12,
             settings(work=lambda event, attempt: "fail")),
    Scenario("S05: the same; the app's API answers 503", 5, settings(api_5xx=1)),
    Scenario("S07: SQS does not take the event; the webhook answers 503", 5, settings(webhook="queue_down")),
    Scenario("S09, S14: a wrong signing secret, at 3 events an hour", 65, settings(request="wrong_secret")),
    Scenario("S09, S79: a burst of wrong signatures, one a second", 5,
             settings(request="wrong_secret", events_per_hour=3600)),
    Scenario("S11, S12: signatures are minutes old, or a clock is wrong", 65, settings(request="old")),
    Scenario("S15: the signing secret is blank or not readable; the webhook does not start", 5,
             settings(webhook="no_start")),
    Scenario("S21: the endpoint sends thin events", 65, settings(request="thin")),
    Scenario("S24: events of the other mode, at 3 an hour", 65, settings(request="other_mode")),
    Scenario("strangers flood the API up to its throttle", 8, settings(api_requests=60 * 100)),
    Scenario("S23, S31, S48, S63, S66: one event is parked (shape, no user, price, another payload)", 5,
             once("parked")),
    Scenario("S53: one record of many fails on every attempt (partial batch failures)", 12,
             both(once("fail", 9), settings(events_per_hour=360))),
    Scenario("S60, S62, S79: an event is in the dead-letter queue", 5,
             lambda world: world.send(world.dead_letter_queue, "event")),
    Scenario("S54: a worker crashes, runs out of memory or of time", 5, settings(crashing=WORKERS)),
    Scenario("a worker reports every record as failed", 12, settings(failing=WORKERS)),
    Scenario("the workers' triggers are disabled", 20, settings(off=WORKERS)),
    Scenario("the account's concurrency is used up; no worker starts", 20, settings(throttled=WORKERS)),
    Scenario("the account's concurrency is used up; the webhook does not start", 5,
             settings(webhook="throttled")),
    Scenario("the app's webhook (`PROVISION_URL`) fails", 12, settings(failing={"provision"})),
    Scenario("the trigger of `provision` is disabled", 20, settings(off={"provision"})),
    Scenario("`dead-letter` fails on every record", 20,
             both(lambda world: world.send(world.dead_letter_queue, "event"),
                  settings(failing={"dead-letter"}))),
    Scenario("the trigger of `dead-letter` is disabled", 20,
             both(lambda world: world.send(world.dead_letter_queue, "event"), settings(off={"dead-letter"}))),
    Scenario("`notify` cannot post: Slack or Discord refuses", 15,
             both(World.alert, settings(failing={"notify"}))),
    Scenario("`notify` does not start: its parameter is not readable", 5,
             both(World.alert, settings(crashing={"notify"}))),
    Scenario("the trigger of `notify` is disabled", 20, both(World.alert, settings(off={"notify"}))),
    Scenario("an alert is lost: its queue does not take it", 5,
             both(settings(alert_queue_down=True), World.alert)),
    Scenario("`retry` fails", 20, settings(crashing={"retry"})),
    Scenario("the schedule of `retry` is disabled", 35, settings(off={"retry"})),
    Scenario("`health` fails", 65, settings(crashing={"health"})),
    Scenario("the schedule of `health` is disabled", 125, settings(off={"health"})),
    Scenario("the health score is below 80", 65, settings(parked=5, failed=6)),
    Scenario("`reconcile` fails", 6 * HOUR + 5, settings(crashing={"reconcile"}), 13 * HOUR, **KEY),
    Scenario("the schedule of `reconcile` is disabled", 12 * HOUR + 5, settings(off={"reconcile"}), 13 * HOUR,
             **KEY),
    Scenario("the Stripe key is revoked", 65, settings(stripe_key="revoked"),
             13 * HOUR, **KEY),
    Scenario("S68: Stripe disables the endpoint; a Stripe key is set", 65,
             settings(sent_by_stripe=False), 13 * HOUR, **KEY),
    Scenario("S68: the same without a Stripe key, in live mode", 27 * HOUR, settings(sent_by_stripe=False),
             DAY, **LIVE),
    Scenario("the webhook's own URL answers 5xx", 5, settings(url_5xx=1), **URL),
    Scenario("the webhook's own URL refuses requests: `FunctionUrlConcurrency` is too low", 8,
             settings(url_4xx=10), **URL),
]

# What no alarm may follow.
NORMAL = [
    Scenario("3 events an hour", 8 * HOUR, settings()),
    Scenario("600 events an hour, each before its customer's link", 2 * HOUR,
             settings(events_per_hour=600, work=lambda event, attempt: "not_yet" if attempt == 1 else "ok")),
    Scenario("no event for a day, in test mode", 30 * HOUR, settings(events_per_hour=0.001)),
    Scenario("an event every 11 hours, in live mode", 30 * HOUR, settings(events_per_hour=1 / 11), DAY,
             **LIVE),
    Scenario("an attempt that fails once", HOUR, once("fail")),
    Scenario("two wrong signatures an hour", 4 * HOUR, settings(request="wrong_secret", events_per_hour=2)),
    Scenario("one old signature", HOUR, settings(request="old", events_per_hour=0.5)),
    Scenario("one event of the other mode an hour", 4 * HOUR,
             settings(request="other_mode", events_per_hour=1)),
    Scenario("S27: 50 requests a second to the API", HOUR, settings(api_requests=60 * 50)),
    Scenario("a day with a Stripe key", DAY, settings(), 13 * HOUR, **KEY),
]


def own_metrics():
    """The names of the metrics that the source emits."""
    names = set()
    for path in ROOT.glob("common/**/*.rs"):
        text = path.read_text(encoding="utf-8").split("#[cfg(test)]")[0]
        if "telemetry::metrics(" in text:
            names |= set(re.findall(r'\("([A-Z][A-Za-z]+)", ', text))
            names |= set(re.findall(r' => "([A-Z][A-Za-z]+)"', text))
    return names


def matches(pattern, event):
    """EventBridge's pattern matching, as far as the template uses it."""
    for name, wanted in pattern.items():
        if isinstance(wanted, dict):
            if not matches(wanted, event.get(name, {})):
                return False
        elif not any(isinstance(one, dict) and event.get(name, "").startswith(one["prefix"])
                     or event.get(name) == one for one in wanted):
            return False
    return True


def wrong_in(everything):
    """What is wrong with the alarms of a stack with every option."""
    alarms = [Alarm(properties) for properties in everything.of_type("AWS::CloudWatch::Alarm").values()]
    topics = [everything.reference(name) for name in everything.of_type("AWS::SNS::Topic")]
    watched = {}
    for alarm in alarms:
        if alarm.actions != topics:
            yield f"{alarm.name} does not publish to the topic itself"
        for namespace, metric, dimensions in alarm.keys():
            watched.setdefault((namespace, metric), set()).add(next((value for _, value in dimensions), None))

    prefix = everything.parameters["Prefix"]
    of_ours = {metric for namespace, metric in watched if namespace == prefix}
    emitted = own_metrics()
    if len(emitted) < 10:
        yield f"found only {len(emitted)} metrics in the source"
    for name in sorted(emitted | of_ours | WITHOUT_ALARM.keys()):
        if name not in emitted:
            yield f"no source file emits the metric {name}"
        elif (name in of_ours) == (name in WITHOUT_ALARM):
            yield f"the metric {name} needs an alarm or a reason in WITHOUT_ALARM, and not both"

    ages = watched["AWS/SQS", "ApproximateAgeOfOldestMessage"]
    waiting = watched["AWS/SQS", "ApproximateNumberOfMessagesVisible"]
    for queue in everything.of_type("AWS::SQS::Queue").values():
        if queue["QueueName"] not in ages | waiting:
            yield f"no alarm watches the queue {queue['QueueName']}"
    for function in everything.of_type("AWS::Lambda::Function").values():
        if function["FunctionName"] not in watched["AWS/Lambda", "Errors"]:
            yield f"no alarm watches the errors of {function['FunctionName']}"

    other = Stack(**{**everything.parameters, "Prefix": f"{prefix}-live"})
    theirs = [Alarm(properties) for properties in other.of_type("AWS::CloudWatch::Alarm").values()]
    for one, another in itertools.product(alarms, theirs):
        shared = [key for key in set(one.keys()) & set(another.keys()) if key[0] != "AWS/ApiGateway"]
        if shared or one.name == another.name:
            yield f"{one.name} and {another.name} watch the same"
    for name, rule in everything.of_type("AWS::Events::Rule").items():
        if "EventPattern" not in rule:
            continue
        if len(json.dumps(rule["EventPattern"])) + 20 * (32 - len(prefix)) > 2048:
            yield f"{name}: EventBridge takes a pattern of 2,048 characters, also with a prefix of 32"
        for owner, all_of in ((prefix, alarms), (f"{prefix}-live", theirs)):
            for alarm in all_of:
                event = {"source": "aws.cloudwatch", "detail-type": "CloudWatch Alarm State Change",
                         "detail": {"alarmName": alarm.name, "state": {"value": "ALARM"}}}
                if matches(rule["EventPattern"], event) != (owner == prefix):
                    yield f"{rule['Name']}: {alarm.name} of {owner}"

    destinations = ("AlarmEmail", "SlackWebhookPath", "DiscordWebhookPath")
    for parameters in ({}, *({name: "/a@b"} for name in destinations)):
        for mode in ("true", "false"):
            broken = Stack(LiveMode=mode, **parameters).broken_rules()
            if bool(broken) != (mode == "true" and not parameters):
                yield f"LiveMode={mode} with {parameters}: {broken}"


def minutes(count):
    return f"{count} min" if count < 120 else f"{count / 60:.0f} h"


def main():
    parser = shared.parser(__doc__)
    parser.add_argument("--check", action="store_true", help="fail instead of printing the table")
    options = parser.parse_args()

    stacks = {}

    def stack(**parameters):
        return stacks.setdefault(json.dumps(parameters), Stack(**parameters))

    everything = stack(**KEY, **LIVE, **URL)
    problems = list(wrong_in(everything))
    lines = ["| fault | noticed by | after |", "|---|---|---|"]
    found = []
    for scenario in FAULTS:
        first = scenario.run(stack(**scenario.parameters))
        found.append(first)
        if not first:
            problems.append(f"no alarm within {scenario.bound} minutes: {scenario.text}")
            continue
        name = min(first, key=first.get)
        lines.append(f"| {scenario.text} | `{name.removeprefix('tallyhook-')}` | {minutes(first[name])} |")
    # Without any one of the alarms, a fault would be noticed late or not at all.
    for alarm in everything.of_type("AWS::CloudWatch::Alarm").values():
        if not any(first.keys() == {alarm["AlarmName"]} for first in found):
            problems.append(f"{alarm['AlarmName']} is not needed: every fault has another alarm in time")
    for scenario in NORMAL:
        first = scenario.run(stack(**scenario.parameters), eager=True)
        if first:
            problems.append(f"a normal day raises an alarm: {scenario.text} ({first})")

    if options.check:
        problems += shared.lacks("docs/operating.md", lines)
    else:
        print("\n".join(lines))
    if problems:
        raise SystemExit("\n".join(["", *problems]))
    print(f"    {len(FAULTS)} faults noticed in time; {len(NORMAL)} normal days without an alarm")


if __name__ == "__main__":
    main()
