// Against a server that fails as networks and gateways do.

import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";

import { Webhook } from "standardwebhooks";
import {
  StripeFailedError,
  Tallyhook,
  UnavailableError,
  WebhookVerificationError,
  verifyWebhook,
} from "tallyhook";

type Answer = (response: ServerResponse, request: IncomingMessage) => void;

/** A server that gives these answers in turn, and the requests that it got. */
async function server(t: { after(end: () => void): void }, ...answers: Answer[]) {
  const requests: { method: string; path: string; key: string | undefined; body: string }[] = [];
  const stub = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => (body += chunk));
    request.on("end", () => {
      const key = request.headers["idempotency-key"] as string | undefined;
      requests.push({ method: request.method ?? "", path: request.url ?? "", key, body });
      (answers.shift() ?? json(200, {}))(response, request);
    });
  });
  await new Promise<void>((resolve) => stub.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    stub.closeAllConnections();
    stub.close();
  });
  const url = `http://127.0.0.1:${(stub.address() as AddressInfo).port}/base/`;
  const timeoutMs = answers.includes(silent) ? 1_500 : 10_000;
  return { requests, tallyhook: new Tallyhook({ url, token: "t", timeoutMs }) };
}

const json = (status: number, body: unknown, headers = {}): Answer => {
  return (response) => response.writeHead(status, headers).end(JSON.stringify(body));
};
const broken: Answer = (_, request) => request.socket.destroy();
const silent: Answer = () => undefined;
const busy = json(503, { error: "store_unavailable", message: "try again" });

for (const [name, answer] of Object.entries({
  "a 503": busy,
  "a 429 of the gateway": json(429, { message: "Too Many Requests" }),
  "a broken connection": broken,
  "a time-out": silent,
  "an answer that is not JSON": ((response) => response.writeHead(200).end("<html>")) as Answer,
})) {
  test(`after ${name} the call is repeated with the same key`, async (t) => {
    const { requests, tallyhook } = await server(t, answer, answer, json(200, { credits: 1 }));
    assert.equal((await tallyhook.consume("jo", 5)).credits, 1);
    assert.equal(requests.length, 3);
    assert.equal(new Set(requests.map(({ key }) => key)).size, 1);
    assert.match(requests[0]?.key ?? "", /^[0-9a-f-]{36}$/);
    const { method, path, body } = requests[0] ?? assert.fail();
    assert.deepEqual([method, path, body], ["POST", "/base/users/jo/credits/consume", '{"amount":5}']);
  });
}

test("two calls have different keys", async (t) => {
  const { requests, tallyhook } = await server(t);
  await tallyhook.consume("jo", 5);
  await tallyhook.consume("jo", 5);
  assert.notEqual(requests[0]?.key, requests[1]?.key);
});

test("a call gives up after the retries", async (t) => {
  const { requests, tallyhook } = await server(t, busy, busy, busy, busy);
  await assert.rejects(tallyhook.getUser("jo"), (error) => {
    assert.ok(error instanceof UnavailableError);
    assert.deepEqual([error.code, error.status], ["store_unavailable", 503]);
    return true;
  });
  assert.equal(requests.length, 3);
  const nowhere = new Tallyhook({ url: "http://127.0.0.1:9", token: "t", retries: 0 });
  await assert.rejects(nowhere.getUser("jo"), { code: "no_connection" });
});

test("what fails again is not repeated", async (t) => {
  const stripe = {
    status: 400,
    type: "invalid_request_error",
    code: null,
    param: null,
    request_id: "req_1",
  };
  const answers = [
    json(400, { error: "invalid_amount", message: "" }),
    json(502, { error: "stripe_error", message: "No such price", stripe }),
    json(502, { error: "no_portal_configuration", message: "save the portal's settings" }),
    json(503, { error: "token_not_configured", message: "" }),
    json(412, { error: "order_changed", message: "" }),
    json(307, {}, { location: "https://elsewhere.example/" }),
  ];
  const { requests, tallyhook } = await server(t, ...answers, busy);
  await assert.rejects(tallyhook.consume("jo", 0), { code: "invalid_amount" });
  await assert.rejects(tallyhook.checkout("jo", { plan: "pro" }), StripeFailedError);
  await assert.rejects(tallyhook.portal("jo"), StripeFailedError);
  await assert.rejects(tallyhook.getUser("jo"), { name: "AuthenticationError" });
  await assert.rejects(tallyhook.updateOrder("jo", "cs_1", "then", {}), { code: "order_changed" });
  await assert.rejects(tallyhook.getUser("jo"), { name: "ApiError", code: "http_307" });
  await assert.rejects(tallyhook.updateOrder("jo", "cs_1", "then", {}), { code: "store_unavailable" });
  assert.equal(requests.length, 7);
});

test("Retry-After is kept", async (t) => {
  const { tallyhook } = await server(t, json(429, {}, { "retry-after": "1" }));
  const started = Date.now();
  await tallyhook.getUser("jo");
  assert.ok(Date.now() - started >= 1000);
});

test("a client without address or token says so", () => {
  const { TALLYHOOK_URL } = process.env;
  delete process.env["TALLYHOOK_URL"];
  assert.throws(() => new Tallyhook(), { code: "not_configured", message: /url is missing/ });
  assert.throws(() => new Tallyhook({ url: "tallyhook.example.com", token: "t" }), {
    code: "not_configured",
  });
  if (TALLYHOOK_URL !== undefined) process.env["TALLYHOOK_URL"] = TALLYHOOK_URL;
});

const SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

function signed(body: string, at = new Date(), secret = SECRET) {
  const seconds = String(Math.floor(at.getTime() / 1000));
  const signature = new Webhook(secret).sign("order_paid_1", at, body);
  return { "webhook-id": "order_paid_1", "webhook-timestamp": seconds, "webhook-signature": signature };
}

test("a signed webhook is read, from Node's headers and the web's", () => {
  const body =
    '{"type": "order.paid", "timestamp": "2026-01-05T10:00:06Z", "data": {"order": {"id": "cs_ü"}}}';
  for (const headers of [signed(body), new Headers(signed(body))]) {
    for (const raw of [body, Buffer.from(body), new TextEncoder().encode(body)]) {
      const { id, message } = verifyWebhook(raw, headers, SECRET);
      assert.equal(id, "order_paid_1");
      assert.ok(message.type === "order.paid");
      assert.equal(message.data.order.id, "cs_ü");
    }
  }
});

test("a missing or wrong secret is not the sender's fault", () => {
  const body = '{"type": "order.paid"}';
  delete process.env["PROVISION_SECRET"];
  for (const secret of [undefined, "", "whsec_", "whsec_ü"]) {
    assert.throws(() => verifyWebhook(body, signed(body), secret), { code: "not_configured" }, secret);
  }
  process.env["PROVISION_SECRET"] = SECRET;
  assert.equal(verifyWebhook(body, signed(body)).id, "order_paid_1");
});

test("a webhook that tallyhook did not sign is refused", () => {
  const body = '{"type": "order.paid"}';
  const good = signed(body);
  const hour = 3_600_000;
  const cases: [string, string | Uint8Array, Record<string, string>][] = [
    ["changed", body.replace("paid", "free"), good],
    ["parsed and written again", JSON.stringify(JSON.parse(body)), good],
    ["another secret", body, signed(body, new Date(), "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")],
    ["another id", body, { ...good, "webhook-id": "order_paid_2" }],
    ["an hour old", body, signed(body, new Date(Date.now() - hour))],
    ["an hour ahead", body, signed(body, new Date(Date.now() + hour))],
    ["no headers", body, {}],
    ["a strange signature", body, { ...good, "webhook-signature": "x" }],
    ["no UTF-8", new Uint8Array([0xff]), good],
  ];
  for (const [name, raw, headers] of cases) {
    assert.throws(() => verifyWebhook(raw, headers, SECRET), WebhookVerificationError, name);
  }
});
