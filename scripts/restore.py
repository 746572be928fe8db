#!/usr/bin/env python3
"""Restores damaged items of the two tables from point-in-time recovery.

    scripts/restore.py sources off        stops the workers and schedules; events wait in their queues
    scripts/restore.py beside 2026-11-26T09:00:00Z
                                          restores both tables, as they were then, under new names
    scripts/restore.py compare            counts and names the items that differ
    scripts/restore.py copy --user jo     writes one user's account, ledger and orders back
    scripts/restore.py copy --all         writes both tables back
    scripts/restore.py sources on         starts the workers and schedules
    scripts/restore.py clean              deletes the restored tables

`copy` makes a partition equal to the restored one: a newer ledger entry beside an older account would
prevent its credits from ever being granted again. It first writes every item that it replaces or removes to
replaced-….jsonl. The tables of the stack stay, with their indexes, protection and roles.

It needs boto3, which comes with the SAM CLI: run it with .check/sam/bin/python."""

import datetime
import json
import sys
import time

import boto3

import shared

SUFFIX = "-restored"
KEYS = {"accounts": ("pk", "sk"), "events": ("pk",)}


class Table:
    """A table of the deployment and the restored one beside it."""

    def __init__(self, prefix, part):
        self.part, self.keys = part, KEYS[part]
        self.name, self.restored = f"{prefix}-{part}", f"{prefix}-{part}{SUFFIX}"
        self.client = boto3.client("dynamodb")

    def key(self, item):
        return {name: item[name] for name in self.keys}

    def text(self, item):
        return " ".join(item[name]["S"] for name in self.keys)

    def beside(self, when):
        self.client.restore_table_to_point_in_time(
            SourceTableName=self.name, TargetTableName=self.restored, RestoreDateTime=when,
            BillingModeOverride="PAY_PER_REQUEST")

    def wait(self):
        self.client.get_waiter("table_exists").wait(TableName=self.restored,
                                                    WaiterConfig={"Delay": 20, "MaxAttempts": 360})

    def pages(self, table, partition):
        """The items of a table, or of one partition, page by page."""
        if partition:
            pages = self.client.get_paginator("query").paginate(
                TableName=table, ConsistentRead=True, KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues={":pk": {"S": partition}})
        else:
            pages = self.client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        for page in pages:
            yield page["Items"]

    def others(self, table, items):
        """The items with the same keys in another table, by key."""
        found = {}
        for start in range(0, len(items), 100):
            asked = {table: {"Keys": [self.key(item) for item in items[start:start + 100]],
                             "ConsistentRead": True}}
            while asked:
                answer = self.client.batch_get_item(RequestItems=asked)
                found.update({self.text(item): item for item in answer["Responses"].get(table, [])})
                asked = answer.get("UnprocessedKeys")
        return found

    def differences(self, partition=None):
        """Pairs of the restored item and ours; None where there is none."""
        for items in self.pages(self.restored, partition):
            ours = self.others(self.name, items)
            for item in items:
                if ours.get(self.text(item)) != item:
                    yield item, ours.get(self.text(item))
        for items in self.pages(self.name, partition):
            restored = self.others(self.restored, items)
            for item in items:
                if self.text(item) not in restored:
                    yield None, item

    def copy(self, partition, log):
        count = 0
        for restored, ours in list(self.differences(partition)):
            if ours:
                log.write(json.dumps({"table": self.name, "item": ours}) + "\n")
                log.flush()
            if restored:
                self.client.put_item(TableName=self.name, Item=restored)
            else:
                self.client.delete_item(TableName=self.name, Key=self.key(ours))
            count += 1
        print(f"    {self.name}: {count} items written back")


def sources(stack, enabled):
    """Turns the triggers of the functions on or off."""
    functions, events = boto3.client("lambda"), boto3.client("events")
    pages = boto3.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
    waiting = []
    for resource in (resource for page in pages for resource in page["StackResourceSummaries"]):
        kind, name = resource["ResourceType"], resource["PhysicalResourceId"]
        if kind == "AWS::Lambda::EventSourceMapping":
            functions.update_event_source_mapping(UUID=name, Enabled=enabled)
            waiting.append(name)
        elif kind == "AWS::Events::Rule" and resource["LogicalResourceId"].endswith("Schedule"):
            (events.enable_rule if enabled else events.disable_rule)(Name=name)
            print(f"    {name}: {'on' if enabled else 'off'}")
    for name in waiting:
        wanted = "Enabled" if enabled else "Disabled"
        for _ in range(60):
            if functions.get_event_source_mapping(UUID=name)["State"] == wanted:
                break
            time.sleep(2)
        else:
            sys.exit(f"the event source {name} is not {wanted}")
    print(f"    {len(waiting)} queues: {'on' if enabled else 'off'}")


def main():
    parser = shared.parser(__doc__)
    parser.add_argument("--prefix", default="tallyhook", help="the parameter Prefix")
    parser.add_argument("--stack-name", help="default: the prefix")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sources").add_argument("to", choices=["on", "off"])
    commands.add_parser("beside").add_argument("time", help="such as 2026-11-26T09:00:00Z")
    commands.add_parser("compare")
    what = commands.add_parser("copy").add_mutually_exclusive_group(required=True)
    what.add_argument("--user", help="the user's id")
    what.add_argument("--all", action="store_true")
    commands.add_parser("clean")
    options = parser.parse_args()
    tables = [Table(options.prefix, part) for part in KEYS]

    if options.command == "sources":
        sources(options.stack_name or options.prefix, options.to == "on")
    elif options.command == "beside":
        when = datetime.datetime.fromisoformat(options.time.replace("Z", "+00:00"))
        for table in tables:
            table.beside(when)
        for table in tables:
            table.wait()
            print(f"    {table.restored} is there")
    elif options.command == "compare":
        for table in tables:
            gone = changed = newer = 0
            for restored, ours in table.differences():
                gone, changed, newer = gone + (ours is None), changed + bool(restored and ours), \
                    newer + (restored is None)
                if gone + changed + newer <= 100:
                    sign = "-" if ours is None else "+" if restored is None else "~"
                    print(f"    {sign} {table.text(restored or ours)}")
            print(f"    {table.name}: {gone} gone, {changed} changed, {newer} newer than the restored table")
    elif options.command == "copy":
        now = datetime.datetime.now(datetime.timezone.utc)
        with open(f"replaced-{now:%Y%m%dT%H%M%SZ}.jsonl", "x", encoding="utf-8") as log:
            if options.all:
                for table in tables:
                    table.copy(None, log)
            else:
                tables[0].copy(f"user#{options.user}", log)
            print(f"    {log.name} has what was there before")
    else:
        for table in tables:
            table.client.delete_table(TableName=table.restored)
            print(f"    {table.restored} is deleted")


if __name__ == "__main__":
    main()
