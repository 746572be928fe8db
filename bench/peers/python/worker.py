import json
import os

import boto3
from runtime import run

dynamodb = boto3.client("dynamodb")
accounts, events = os.environ["ACCOUNTS_TABLE"], os.environ["EVENTS_TABLE"]


def apply(event):
    invoice = event["data"]["object"]
    pk = {"S": "user#" + invoice["parent"]["subscription_details"]["metadata"]["user_id"]}
    entry = {"pk": pk, "sk": {"S": "ledger#invoice#" + invoice["id"]}}
    read = dynamodb.batch_get_item(
        RequestItems={
            accounts: {"Keys": [{"pk": pk, "sk": {"S": "account"}}, entry], "ConsistentRead": True},
            events: {"Keys": [{"pk": {"S": event["id"]}}], "ConsistentRead": True},
        }
    )
    known = next((item for item in read["Responses"].get(accounts, []) if item["sk"]["S"] == "account"), {})
    version = int(known.get("version", {"N": "0"})["N"])
    credits = int(known.get("credits", {"N": "0"})["N"]) + 5000
    absent = {"ConditionExpression": "attribute_not_exists(pk)"}
    on_version = absent
    if version:
        on_version = {"ConditionExpression": "version = :version", "ExpressionAttributeValues": {":version": {"N": str(version)}}}
    account = {"pk": pk, "sk": {"S": "account"}, "version": {"N": str(version + 1)}, "credits": {"N": str(credits)},
               "tier": {"S": "pro"}, "updated_at": {"N": str(event["created"])}}
    marker = {"pk": {"S": event["id"]}, "outcome": {"S": "processed"}, "user_id": pk, "created": {"N": str(event["created"])},
              "expires_at": {"N": str(event["created"] + 90 * 86400)}}
    ledger = entry | {"delta": {"N": "5000"}, "balance": {"N": str(credits)}, "event": {"S": event["id"]}}
    dynamodb.transact_write_items(
        TransactItems=[
            {"Put": {"TableName": accounts, "Item": account, **on_version}},
            {"Put": {"TableName": accounts, "Item": ledger, **absent}},
            {"Put": {"TableName": events, "Item": marker, **absent}},
        ]
    )


def handler(batch, _=None):
    failed = []
    for record in batch["Records"]:
        try:
            apply(json.loads(record["body"]))
        except Exception:
            failed.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failed}


run(handler)
