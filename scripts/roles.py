#!/usr/bin/env python3
"""Judges the roles and policies of the expanded template with MiniStack's evaluator of IAM policies.

- tests/data/calls.json has the calls of DynamoDB and SQS that each function made in tests/permissions.rs. The
  function's role must allow each, also the reads of its parameters, its log lines, and what Lambda's poller
  does with the role.
- Every other call of a list of actions on every table, index, queue, parameter and role, of this deployment
  and of another one in the same account, must be refused.
- The role of deploy-role.yaml may write the resources of its stack, and none of another.
- Only Lambda may assume a role. A queue refuses calls without TLS. Only EventBridge's rule and the functions
  may send to the queue of alerts.

The stack has every option that adds a permission. It needs ministack and aws-sam-translator (`./check
ministack` installs them)."""

import itertools
import json
import sys

sys.path.append(sys.path.pop(0))  # the package ministack before the script of that name
# pylint: disable=wrong-import-position
from ministack.core.iam_evaluator import (EvalContext, evaluate, evaluate_resource_policy,  # noqa: E402
                                          evaluate_trust_policy, parse_policy_document)

from expanded import ACCOUNT, REGION, Stack  # noqa: E402
from shared import ROOT  # noqa: E402

OPTIONS = {"StripeKeyPath": "/tallyhook/stripe-secret-key", "SlackWebhookPath": "/tallyhook/slack",
           "DiscordWebhookPath": "/tallyhook/discord", "ProvisionSecretPath": "/tallyhook/provision-secret"}



def actions(service, names):
    return {f"{service}:{name}" for name in names.split()}


ITEMS = actions("dynamodb", """BatchGetItem BatchWriteItem ConditionCheckItem DeleteItem DeleteTable
    DescribeTable ExportTableToPointInTime GetItem PartiQLDelete PutItem Query RestoreTableToPointInTime Scan
    UpdateItem UpdateTable UpdateTimeToLive""")
MESSAGES = actions("sqs", """AddPermission ChangeMessageVisibility DeleteMessage DeleteQueue
    GetQueueAttributes PurgeQueue ReceiveMessage SendMessage SetQueueAttributes""")
PARAMETERS = actions("ssm", "DeleteParameter GetParameter GetParameters PutParameter")
METRICS = actions("cloudwatch", "DeleteAlarms GetMetricData PutMetricAlarm PutMetricData SetAlarmState")
LOGS = actions("logs", "CreateLogStream DeleteLogGroup DeleteLogStream GetLogEvents PutLogEvents")
OTHERS = {("iam:PassRole", "role/{}"), ("sts:AssumeRole", "role/{}"), ("iam:PutRolePolicy", "role/{}")}
POLLING = {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}

# What a policy that several functions share also allows to those that do not need it: reads and writes of
# single items, and messages to the queues. Each is used by one of them.
SHARED = {"dynamodb:BatchGetItem", "dynamodb:PutItem", "sqs:SendMessage"}


def decide(policies, action, resource, role="role", **more):
    return evaluate(context(action, resource, role, **more), policies).decision


def context(action, resource, role="role", **more):
    principal = f"arn:aws:sts::{ACCOUNT}:assumed-role/{role}/function"
    return EvalContext(principal, "AssumedRole", ACCOUNT, action, resource, REGION, **more)


def foreign(arn):
    """The same resource of another deployment."""
    return arn.replace("tallyhook", "tallyhook-live", 1)


def parameter_arn(path):
    return f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter{path}"


class Judge:
    """The stack's resources by name, and what was decided otherwise than expected."""

    def __init__(self, stack):
        self.stack, self.problems, self.allowed, self.refused = stack, [], 0, 0
        kinds = ("AWS::DynamoDB::Table", "AWS::SQS::Queue")
        self.places = {name: stack.attribute(name, "Arn") for kind in kinds for name in stack.of_type(kind)}
        for name, table in stack.of_type("AWS::DynamoDB::Table").items():
            for index in table["GlobalSecondaryIndexes"]:
                place = f"{name}/index/{index['IndexName']}"
                self.places[place] = f"{self.places[name]}/index/{index['IndexName']}"
        self.places["*"] = "*"  # of an action without resources
        self.logs = stack.attribute("LogGroup", "Arn")
        self.roles = stack.of_type("AWS::IAM::Role")
        managed = stack.of_type("AWS::IAM::ManagedPolicy")
        self.policies = {
            name: [parse_policy_document(document) for document in
                   [managed[policy]["PolicyDocument"] for policy in role["ManagedPolicyArns"]] +
                   [policy["PolicyDocument"] for policy in role["Policies"]]]
            for name, role in self.roles.items()}

    def every_call(self):
        """Each action on each resource, of this deployment and of another."""
        paths = {parameter_arn(path) for function in self.stack.of_type("AWS::Lambda::Function").values()
                 for path in parameters(function)}
        tables = {arn for arn in self.places.values() if ":dynamodb:" in arn}
        queues = {arn for arn in self.places.values() if ":sqs:" in arn}
        for names, arns in ((ITEMS, tables), (MESSAGES, queues), (PARAMETERS, paths), (LOGS, {self.logs})):
            yield from itertools.product(names, arns | {foreign(arn) for arn in arns})
        for action, place in OTHERS:
            for role in self.roles:
                yield action, f"arn:aws:iam::{ACCOUNT}:{place.format(role)}"
        yield from itertools.product(METRICS, {"*"})
        yield "lambda:InvokeFunction", f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:tallyhook-admin"
        yield "sns:Publish", self.stack.attribute("AlarmsTopic", "TopicArn")

    def function(self, role, needed, name):
        own = set(self.places.values())
        for action, arn in needed:
            self.allowed += 1
            if decide(self.policies[role], action, arn, role) != "Allow":
                self.problems.append(f"{name} may not do {action} on {arn}")
        for action, arn in self.every_call():
            if (action, arn) in needed or (action in SHARED and arn in own):
                continue
            self.refused += 1
            if decide(self.policies[role], action, arn, role) == "Allow":
                self.problems.append(f"{name} may do {action} on {arn}")

    def trust(self):
        # Not an account's root: the evaluator takes it for a service.
        strangers = [f"arn:aws:iam::{ACCOUNT}:user/somebody", "arn:aws:iam::210987654321:user/somebody",
                     f"arn:aws:sts::{ACCOUNT}:assumed-role/AdminRole/function"]
        for name, role in self.roles.items():
            document = role["AssumeRolePolicyDocument"]
            principals = [statement["Principal"] for statement in document["Statement"]]
            if principals != [{"Service": "lambda.amazonaws.com"}]:
                self.problems.append(f"{name} trusts {principals}")
            for stranger in strangers:
                self.refused += 1
                if evaluate_trust_policy(document, stranger, context("sts:AssumeRole", name)):
                    self.problems.append(f"{stranger} may assume {name}")

    def queue_policies(self):
        documents = {}
        for policy in self.stack.of_type("AWS::SQS::QueuePolicy").values():
            for url in policy["Queues"]:
                documents[url.rsplit("/", 1)[-1]] = policy["PolicyDocument"]
        rule = self.stack.attribute("AlarmsRule", "Arn")
        for name, queue in self.stack.of_type("AWS::SQS::Queue").items():
            document, arn = documents.get(queue["QueueName"]), self.places[name]
            for action in MESSAGES:
                self.refused += 1
                plain = context(action, arn, secure_transport=False)
                if evaluate_resource_policy(document, plain).decision != "Deny":
                    self.problems.append(f"{name} takes {action} without TLS")
            for source, decision in ((rule, "Allow" if name == "NotifyQueue" else "ImplicitDeny"),
                                     (f"arn:aws:events:{REGION}:{ACCOUNT}:rule/other", "ImplicitDeny")):
                event = context("sqs:SendMessage", arn, secure_transport=True,
                                service_context={"aws:sourcearn": source})
                decided = evaluate_resource_policy(document, event, "events.amazonaws.com").decision
                if decided != decision:
                    self.problems.append(f"{name}: a message of the rule {source} is decided as {decided}")


# One write for each type of resource that has the prefix in its ARN.
WRITES = {"AWS::CloudWatch::Alarm": "cloudwatch:PutMetricAlarm",
          "AWS::DynamoDB::Table": "dynamodb:UpdateTable",
          "AWS::Lambda::Function": "lambda:UpdateFunctionCode",
          "AWS::Logs::LogGroup": "logs:PutRetentionPolicy",
          "AWS::SNS::Topic": "sns:SetTopicAttributes", "AWS::SQS::Queue": "sqs:SetQueueAttributes"}


def deploy_role(judge):
    """The role that deploys may write the resources of its stack, and none of another stack."""
    stack = Stack(ROOT / "deploy-role.yaml", Repository="you/tallyhook")
    (role,) = stack.of_type("AWS::IAM::Role").values()
    policies = [parse_policy_document(policy["PolicyDocument"]) for policy in role["Policies"]]
    function = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:tallyhook-api"
    mapping = f"arn:aws:lambda:{REGION}:{ACCOUNT}:event-source-mapping:1"
    rule = f"arn:aws:events:{REGION}:{ACCOUNT}:rule/tallyhook-RetryFunctionSchedule-1"
    calls = [(action, judge.stack.attribute(name, "Arn"), {}) for kind, action in WRITES.items()
             for name in judge.stack.of_type(kind)]
    calls += [("events:PutRule", rule, {}), ("apigateway:POST", f"arn:aws:apigateway:{REGION}::/apis", {})]
    calls += [("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/tallyhook-ApiRole-1", {})]
    for action in ("lambda:CreateEventSourceMapping", "lambda:DeleteEventSourceMapping"):
        calls += [(action, mapping, {"lambda:functionarn": function})]
    for action, arn, more in calls:
        judge.allowed += 1
        if decide(policies, action, arn, service_context=more) != "Allow":
            judge.problems.append(f"the deploy role may not do {action} on {arn}")
        for other_name in ("tallyhook-live", "shop"):
            other = arn.replace("tallyhook", other_name, 1)
            other_context = {key: value.replace("tallyhook", other_name, 1) for key, value in more.items()}
            if action.startswith("apigateway:"):  # AWS chooses the ids of HTTP APIs
                continue
            judge.refused += 1
            if decide(policies, action, other, service_context=other_context) == "Allow":
                judge.problems.append(f"the deploy role may do {action} on {other}")


def parameters(function):
    """The paths of the parameters that a function reads."""
    values = function["Environment"]["Variables"].values()
    return {str(value).removeprefix("ssm:") for value in values if str(value).startswith("ssm:")}


def main():
    stack = Stack(**OPTIONS)
    judge = Judge(stack)
    calls = json.loads((ROOT / "tests/data/calls.json").read_text(encoding="utf-8"))
    sources = {properties["FunctionName"]: properties["EventSourceArn"]
               for properties in stack.of_type("AWS::Lambda::EventSourceMapping").values()}
    groups = set()
    for function in stack.of_type("AWS::Lambda::Function").values():
        name = function["FunctionName"]
        group = name.removeprefix("tallyhook-")
        group = group if group in calls else "worker"  # the workers' calls are one list
        groups.add(group)
        queue = sources.get(name)
        needed = {("logs:CreateLogStream", judge.logs), ("logs:PutLogEvents", judge.logs)}
        needed |= {("ssm:GetParameters", parameter_arn(path)) for path in parameters(function)}
        needed |= {(action, queue) for action in POLLING if queue}
        for action, place in (line.split(" ") for line in calls[group]):
            of_its_queue = group == "worker" and place.endswith("Queue") and action != "sqs:SendMessage"
            needed.add((action, queue if of_its_queue else judge.places[place]))
        judge.function(function["Role"].rsplit(":", 1)[-1], needed, name)
    if groups != calls.keys():
        judge.problems.append(f"only calls.json or only the template has these: {groups ^ calls.keys()}")
    judge.trust()
    judge.queue_policies()
    deploy_role(judge)
    print("".join(f"    {problem}\n" for problem in judge.problems), end="")
    print(f"    {len(judge.roles)} roles: {judge.allowed} calls to allow, {judge.refused} to refuse,"
          f" {len(judge.problems)} decided otherwise")
    return 1 if judge.problems else 0


if __name__ == "__main__":
    sys.exit(main())
