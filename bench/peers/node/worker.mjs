import { BatchGetItemCommand, DynamoDBClient, TransactWriteItemsCommand } from "@aws-sdk/client-dynamodb";
import { run } from "./runtime.mjs";

const dynamodb = new DynamoDBClient({});
const { ACCOUNTS_TABLE: accounts, EVENTS_TABLE: events } = process.env;

async function apply(event) {
    const invoice = event.data.object;
    const pk = { S: `user#${invoice.parent.subscription_details.metadata.user_id}` };
    const entry = { pk, sk: { S: `ledger#invoice#${invoice.id}` } };
    const read = await dynamodb.send(
        new BatchGetItemCommand({
            RequestItems: {
                [accounts]: { Keys: [{ pk, sk: { S: "account" } }, entry], ConsistentRead: true },
                [events]: { Keys: [{ pk: { S: event.id } }], ConsistentRead: true },
            },
        }),
    );
    const known = read.Responses[accounts]?.find((item) => item.sk.S === "account");
    const version = Number(known?.version?.N ?? 0);
    const credits = Number(known?.credits?.N ?? 0) + 5000;
    const account = {
        pk,
        sk: { S: "account" },
        version: { N: String(version + 1) },
        credits: { N: String(credits) },
        tier: { S: "pro" },
        updated_at: { N: String(event.created) },
    };
    const absent = { ConditionExpression: "attribute_not_exists(pk)" };
    const onVersion =
        version === 0
            ? absent
            : {
                  ConditionExpression: "version = :version",
                  ExpressionAttributeValues: { ":version": { N: String(version) } },
              };
    await dynamodb.send(
        new TransactWriteItemsCommand({
            TransactItems: [
                { Put: { TableName: accounts, Item: account, ...onVersion } },
                {
                    Put: {
                        TableName: accounts,
                        Item: {
                            ...entry,
                            delta: { N: "5000" },
                            balance: { N: String(credits) },
                            event: { S: event.id },
                        },
                        ...absent,
                    },
                },
                {
                    Put: {
                        TableName: events,
                        ...absent,
                        Item: {
                            pk: { S: event.id },
                            outcome: { S: "processed" },
                            user_id: pk,
                            created: { N: String(event.created) },
                            expires_at: { N: String(event.created + 90 * 86400) },
                        },
                    },
                },
            ],
        }),
    );
}

await run(async (batch) => {
    const done = await Promise.allSettled(batch.Records.map((record) => apply(JSON.parse(record.body))));
    return {
        batchItemFailures: batch.Records.filter((_, place) => done[place].status === "rejected").map(
            ({ messageId }) => ({ itemIdentifier: messageId }),
        ),
    };
});
