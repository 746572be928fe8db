import os
import time

import boto3
import stripe
from runtime import run

sqs = boto3.client("sqs")


def handler(request, _=None):
    try:
        event = stripe.Webhook.construct_event(request["body"], request["headers"]["stripe-signature"], os.environ["STRIPE_WEBHOOK_SECRET"])
    except (ValueError, stripe.SignatureVerificationError):
        return {"statusCode": 400, "body": "invalid signature"}
    if event["type"] == "invoice.paid":
        sqs.send_message(
            QueueUrl=os.environ["QUEUE_URL_INVOICE_PAID"],
            MessageBody=request["body"],
            MessageAttributes={
                "received_at": {"DataType": "Number", "StringValue": str(int(time.time() * 1000))},
                "mode": {"DataType": "String", "StringValue": "any"},
            },
        )
    return {"statusCode": 200, "headers": {"content-type": "application/json"}, "body": '{"received":true}'}


run(handler)
