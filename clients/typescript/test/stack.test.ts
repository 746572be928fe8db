// Against a running stack: TALLYHOOK_URL and APP_API_TOKEN name it.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { before, test } from "node:test";

import {
  AlreadySubscribedError,
  AuthenticationError,
  ConflictError,
  HoldCommitError,
  InsufficientCreditsError,
  InvalidRequestError,
  NotFoundError,
  Tallyhook,
  TallyhookError,
} from "tallyhook";

const SIGNUP = 500;
const tallyhook = new Tallyhook();
const stack = process.env["TALLYHOOK_URL"];

let user: string;
before(() => assert.ok(stack, "TALLYHOOK_URL names the stack"));

async function newUser(prefix = "ts"): Promise<string> {
  user = `${prefix}_${randomUUID()}`;
  await tallyhook.createUser(user);
  return user;
}

async function eventually(what: string, holds: () => Promise<boolean>): Promise<void> {
  const end = Date.now() + 30_000;
  while (!(await holds())) {
    assert.ok(Date.now() < end, what);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** Pays a session of the fake Stripe, and waits until an event confirms it. */
async function pay(session: string): Promise<void> {
  const paid = await fetch(`${stack}/local/stripe/pay/${session}`, {
    method: "POST",
    redirect: "manual",
  });
  assert.ok(paid.status < 400, `${paid.status}`);
  await eventually(
    "it is paid",
    async () => (await tallyhook.setupStatus(session)).payment_state === "paid",
  );
}

const available = async () => (await tallyhook.getUser(user)).available;

test("a user is created once", async () => {
  await newUser();
  const again = await tallyhook.createUser(user);
  assert.deepEqual([again.user_id, again.tier, again.credits], [user, "free", SIGNUP]);
});

test("ids are taken as they are", async () => {
  const ids = ["a/b?c#d%2F.", "ü 😀", "a b+c&d=e;f", "..x", " ", "a/../b", "%2E%2E", "\\", "...", "x/."];
  for (const odd of ids) {
    const id = odd.trim() ? `${odd}${randomUUID()}${odd}` : odd;
    assert.equal((await tallyhook.createUser(id)).user_id, id);
    assert.equal((await tallyhook.getUser(id)).user_id, id);
    assert.equal((await tallyhook.consume(id, 1)).user_id, id);
    assert.equal((await tallyhook.ledger(id)).entries.at(-1)?.kind, "signup");
  }
});

test("an id that a URL cannot carry is refused, and nothing is sent", async () => {
  const silent = new Tallyhook({ fetch: () => assert.fail("a request was sent") });
  for (const id of [".", "..", ""]) {
    await assert.rejects(() => silent.getUser(id), { code: "invalid_id" });
    await assert.rejects(() => silent.consume(id, 1), { code: "invalid_id" });
  }
});

test("check answers for features and credits", async () => {
  await newUser();
  const limit = await tallyhook.check(user, { feature: "projects", used: 0 });
  assert.deepEqual([limit.allowed, limit.limit, limit.because], [true, 1, "default"]);
  assert.equal((await tallyhook.check(user, { feature: "projects", used: 1 })).allowed, false);
  assert.equal((await tallyhook.check(user, { feature: "sso" })).allowed, false);
  assert.deepEqual(await tallyhook.check(user, { credits: SIGNUP }), {
    allowed: true,
    available: SIGNUP,
  });
  assert.equal((await tallyhook.check(user, { credits: SIGNUP + 1 })).allowed, false);
  await assert.rejects(tallyhook.check(user, { feature: "ssso" }), (error) => {
    assert.ok(error instanceof InvalidRequestError);
    assert.deepEqual([error.code, error.status], ["unknown_feature", 400]);
    return true;
  });
});

test("consume spends once for each key", async () => {
  await newUser();
  assert.equal((await tallyhook.consume(user, 10, { key: "job 1" })).credits, SIGNUP - 10);
  assert.equal((await tallyhook.consume(user, 10, { key: "job 1" })).credits, SIGNUP - 10);
  await assert.rejects(tallyhook.consume(user, 11, { key: "job 1" }), ConflictError);
  await tallyhook.consume(user, 10);
  assert.equal((await tallyhook.consume(user, 10)).credits, SIGNUP - 30);
  const back = await tallyhook.refund(user, "job 1", 4);
  assert.deepEqual([back.refunded, back.credits], [4, SIGNUP - 26]);
  await assert.rejects(tallyhook.consume(user, 9999), (error) => {
    assert.ok(error instanceof InsufficientCreditsError);
    assert.equal(error.code, "insufficient_credits");
    assert.match(error.message, /474 credits are available, 9999 are needed/);
    assert.match(error.advice, /checkout/);
    return true;
  });
  await assert.rejects(tallyhook.consume(user, 1, { key: "jöb" }), { code: "invalid_key" });
  assert.equal(await available(), SIGNUP - 26);
});

test("the ledger comes page by page", async () => {
  await newUser();
  for (let spend = 0; spend < 3; spend++) await tallyhook.consume(user, 1);
  const first = await tallyhook.ledger(user, { limit: 3 });
  assert.equal(first.entries.length, 3);
  assert.ok(first.next);
  const second = await tallyhook.ledger(user, { next: first.next });
  assert.deepEqual([second.entries.map((entry) => entry.kind), second.next], [["signup"], null]);
});

test("withHold takes what the job used", async () => {
  await newUser();
  const result = await tallyhook.withHold(user, 200, async (hold) => {
    assert.equal(await available(), SIGNUP - 200);
    assert.ok(hold.expiresAt.getTime() > Date.now());
    hold.used = 120;
    return "summary";
  });
  assert.deepEqual([result, await available()], ["summary", SIGNUP - 120]);
  await tallyhook.withHold(user, 30, () => undefined);
  assert.equal(await available(), SIGNUP - 150);
  await tallyhook.withHold(user, 30, (hold) => void (hold.used = 0));
  assert.equal(await available(), SIGNUP - 150);
});

test("withHold releases the credits of a job that fails, and passes its error on", async () => {
  await newUser();
  const failure = new Error("the model failed");
  const job = () => Promise.reject(failure);
  await assert.rejects(tallyhook.withHold(user, 200, job), (error) => error === failure);
  const account = await tallyhook.getUser(user);
  assert.deepEqual([account.available, account.held], [SIGNUP, 0]);
});

test("withHold starts no job that the user cannot pay", async () => {
  await newUser();
  const job = () => assert.fail("the job ran");
  await assert.rejects(tallyhook.withHold(user, SIGNUP + 1, job), InsufficientCreditsError);
});

test("withHold charges a job with a key once, however often it runs", async () => {
  await newUser();
  const run = (used: number, fails = false) =>
    tallyhook.withHold(
      user,
      200,
      (hold) => {
        hold.used = used;
        if (fails) throw new Error("the model failed");
        return used;
      },
      { key: "job" },
    );
  await assert.rejects(run(50, true), { message: "the model failed" });
  assert.equal(await available(), SIGNUP);
  assert.equal(await run(60), 60);
  assert.equal(await available(), SIGNUP - 60);
  assert.equal(await run(60), 60);
  assert.equal(await available(), SIGNUP - 60);

  await newUser();
  assert.equal(await run(70), 70);
  assert.equal(await run(80), 80, "committed with 70 already");
  assert.equal(await available(), SIGNUP - 70);
});

test("withHold takes more than was held if the user has it, and else keeps the result", async () => {
  await newUser();
  await tallyhook.withHold(user, 100, (hold) => void (hold.used = 150));
  assert.equal(await available(), SIGNUP - 150);
  const job = tallyhook.withHold(user, 100, (hold) => {
    hold.used = 9999;
    return "summary";
  });
  const error = await job.then(assert.fail, (error: unknown) => error);
  assert.ok(error instanceof HoldCommitError);
  assert.deepEqual([error.result, error.used, error.code], ["summary", 9999, "exceeds_hold"]);
  await tallyhook.commitHold(user, error.hold, 100);
  assert.equal(await available(), SIGNUP - 250);
});

test("checkout sells a plan once, and then points to the portal", async () => {
  await newUser();
  const session = await tallyhook.checkout(user, { plan: "pro", customer_reference: "PO-7" });
  assert.equal(session.mode, "subscription");
  const unpaid = await tallyhook.setupStatus(session.session_id);
  assert.deepEqual([unpaid.payment_state, unpaid.reference], ["unpaid", "PO-7"]);
  await pay(session.session_id);
  // The credits come with an event of their own.
  await eventually(
    "it has the plan's credits",
    async () => (await tallyhook.getUser(user)).credits === 5000,
  );
  assert.equal((await tallyhook.getUser(user)).tier, "pro");
  assert.deepEqual((await tallyhook.check(user, { feature: "projects", used: 7 })).remaining, 3);

  await assert.rejects(tallyhook.checkout(user, { plan: "business" }), (error) => {
    assert.ok(error instanceof AlreadySubscribedError);
    assert.ok(error.portalUrl?.startsWith("http"), `${error.portalUrl}`);
    return true;
  });
  await assert.rejects(tallyhook.checkout(user, { plan: "gold" }), { code: "unknown_name" });
  const portal = await tallyhook.portal(user, { flow: "payment_method", return_path: "/account" });
  assert.ok(portal.url.startsWith("http") && portal.flow === "payment_method", portal.url);
  await tallyhook.reportProvisioning(user, "WELCOME_EMAIL_SENT");
  await tallyhook.reportPassword(user);
  const done = await tallyhook.setupStatus(session.session_id);
  assert.deepEqual([done.welcome_email_sent, done.password_state], [true, "set"]);
});

test("an order moves on by the state that was read", async () => {
  await newUser();
  const session = await tallyhook.checkout(user, { mode: "dfy", plan: "starter" });
  await pay(session.session_id);
  const order = await tallyhook.getOrder(user, session.session_id);
  assert.equal(order.status, "NEW");
  const moved = await tallyhook.updateOrder(user, order.id, order.updated_at, { status: "IN_PROGRESS" });
  assert.deepEqual(
    moved.history.map(({ step }) => step),
    ["NEW", "IN_PROGRESS"],
  );
  const late = tallyhook.updateOrder(user, order.id, "2026-01-05T10:00:06Z", { status: "DELIVERED" });
  await assert.rejects(late, { code: "order_changed", status: 412 });
});

test("the catalog and the portal of a user who never bought", async () => {
  const { plans } = await tallyhook.catalog();
  assert.ok(plans.some(({ name, features }) => name === "pro" && features["projects"] === 10));
  await newUser();
  await assert.rejects(tallyhook.portal(user), { name: "ConflictError", code: "no_customer" });
});

test("errors have a type", async () => {
  await assert.rejects(tallyhook.getUser(`ts_${randomUUID()}`), NotFoundError);
  const stranger = new Tallyhook({ token: "wrong" });
  await assert.rejects(stranger.getUser("jo"), (error) => {
    assert.ok(error instanceof AuthenticationError && error instanceof TallyhookError);
    assert.deepEqual([error.code, error.status], ["unauthorized", 401]);
    return true;
  });
});
