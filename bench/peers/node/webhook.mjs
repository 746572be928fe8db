import { SQSClient, SendMessageCommand } from "@aws-sdk/client-sqs";
import Stripe from "stripe";
import { run } from "./runtime.mjs";

const stripe = new Stripe("sk_test_unused");
const sqs = new SQSClient({});

await run(async (request) => {
    let event;
    try {
        event = stripe.webhooks.constructEvent(
            request.body,
            request.headers["stripe-signature"],
            process.env.STRIPE_WEBHOOK_SECRET,
        );
    } catch {
        return { statusCode: 400, body: "invalid signature" };
    }
    if (event.type === "invoice.paid") {
        await sqs.send(
            new SendMessageCommand({
                QueueUrl: process.env.QUEUE_URL_INVOICE_PAID,
                MessageBody: request.body,
                MessageAttributes: {
                    received_at: { DataType: "Number", StringValue: String(Date.now()) },
                    mode: { DataType: "String", StringValue: "any" },
                },
            }),
        );
    }
    return { statusCode: 200, headers: { "content-type": "application/json" }, body: '{"received":true}' };
});
