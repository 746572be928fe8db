import { randomUUID } from "node:crypto";

import {
  ConflictError,
  HoldCommitError,
  TallyhookError,
  UnavailableError,
  errorOf,
  isPassing,
} from "./errors.js";
import type { components } from "./schema.js";

type Schemas = components["schemas"];
export type Account = Schemas["Account"];
export type Check = Schemas["Check"];
export type FeatureCheck = Schemas["FeatureCheck"];
export type CreditsCheck = Schemas["CreditsCheck"];
export type Consumed = Schemas["Consumed"];
export type Hold = Schemas["Hold"];
export type HoldCommitted = Schemas["HoldCommitted"];
export type HoldReleased = Schemas["HoldReleased"];
export type GivenBack = Schemas["GivenBack"];
export type Ledger = Schemas["Ledger"];
export type Order = Schemas["OrderWithHistory"];
export type OrderChange = Schemas["OrderChange"];
export type CheckoutOptions = Schemas["CheckoutOptions"];
export type CheckoutSession = Schemas["CheckoutSession"];
export type PortalOptions = Schemas["PortalOptions"];
export type PortalSession = Schemas["PortalSession"];
export type Catalog = Schemas["Catalog"];
export type SetupStatus = Schemas["SetupStatus"];
export type ProvisioningState = Schemas["ProvisioningReported"]["state"];

export interface Options {
  /** The API's address; default `TALLYHOOK_URL` of the environment. */
  url?: string;
  /** The deployment's `APP_API_TOKEN`; default `APP_API_TOKEN` of the environment. */
  token?: string;
  /** How long one attempt may take; default 10,000. Calls that ask Stripe may take 30,000. */
  timeoutMs?: number;
  /** How often a call is repeated after 429, 5xx, a time-out or no connection; default 2. */
  retries?: number;
  /** Default: the global `fetch`. */
  fetch?: typeof fetch;
}

export interface KeyOption {
  /**
   * The idempotency key: calls with the same key take effect once. Default: a new one for each call, which
   * makes this client's own retries safe. Pass the id of your job, and a repeated job is charged once.
   */
  key?: string;
}

/** The credits that a job of `withHold` may use. */
export interface HeldCredits {
  readonly id: string;
  readonly amount: number;
  readonly expiresAt: Date;
  /** What the job has used: a whole number. Set it before the job returns; it starts as `amount`. */
  used: number;
}

const STRIPE_TIMEOUT_MS = 30_000;
const MAX_WAIT_MS = 5_000;

interface Call {
  query?: Record<string, string | number | undefined>;
  body?: unknown;
  /** The `Idempotency-Key`. */
  key?: string;
  headers?: Record<string, string>;
  timeoutMs?: number;
  retries?: number;
}

/** The API of a tallyhook deployment. A user id is your own id of the user. */
export class Tallyhook {
  readonly #url: string;
  readonly #token: string;
  readonly #timeoutMs: number;
  readonly #retries: number;
  readonly #fetch: typeof fetch;

  constructor(options: Options = {}) {
    const given = (value: string | undefined, option: string, name: string) => {
      const found = value ?? process.env[name];
      if (!found) {
        throw new TallyhookError(
          "not_configured",
          `${option} is missing`,
          `Pass \`${option}\` or set ${name}.`,
        );
      }
      return found;
    };
    this.#url = given(options.url, "url", "TALLYHOOK_URL").replace(/\/+$/, "");
    if (!/^https?:\/\/./.test(this.#url)) {
      throw new TallyhookError(
        "not_configured",
        "url must begin with https:// or http://",
        "Pass the API's address.",
      );
    }
    this.#token = given(options.token, "token", "APP_API_TOKEN");
    this.#timeoutMs = options.timeoutMs ?? 10_000;
    this.#retries = options.retries ?? 2;
    this.#fetch = options.fetch ?? ((...request) => fetch(...request));
  }

  /** Creates the user. Idempotent; the first call grants the signup credits. */
  createUser(user: string): Promise<Account> {
    return this.#call("PUT", ["users", user]);
  }

  /** Reads the user's tier, credits, features, subscriptions and orders. */
  getUser(user: string): Promise<Account> {
    return this.#call("GET", ["users", user]);
  }

  /** Whether the user may use one more of a feature, or has the credits. */
  check(user: string, question: { feature: string; used?: number }): Promise<FeatureCheck>;
  check(user: string, question: { credits: number }): Promise<CreditsCheck>;
  check(user: string, question: { feature?: string; used?: number; credits?: number }): Promise<Check> {
    return this.#call("GET", ["users", user, "check"], { query: question });
  }

  /** Spends credits. Throws `InsufficientCreditsError` if the user has too few. */
  consume(user: string, amount: number, options: KeyOption = {}): Promise<Consumed> {
    return this.#call("POST", ["users", user, "credits", "consume"], {
      body: { amount },
      ...idempotent(options),
    });
  }

  /** Gives credits of a spend back. `spend` is the key of a `consume`, or the id of a hold. */
  refund(user: string, spend: string, amount: number, options: KeyOption = {}): Promise<GivenBack> {
    const body = { spend, amount };
    return this.#call("POST", ["users", user, "credits", "refund"], { body, ...idempotent(options) });
  }

  /** One page of the ledger, newest first. Pass `next` of a page to get the following one. */
  ledger(user: string, page: { limit?: number; next?: string } = {}): Promise<Ledger> {
    return this.#call("GET", ["users", user, "ledger"], { query: page });
  }

  /**
   * Runs `job` with up to `amount` credits held, and takes `hold.used` of them when it has returned. If it
   * throws, all are released.
   *
   * With a `key`, the job is charged once, however often it runs with that key. More than `amount` is taken
   * if the user has it. If the credits cannot be taken, `HoldCommitError` has the job's result.
   */
  async withHold<T>(
    user: string,
    amount: number,
    job: (hold: HeldCredits) => T | Promise<T>,
    options: KeyOption & { ttlSeconds?: number } = {},
  ): Promise<T> {
    const opened = await this.hold(user, amount, options);
    const hold = { id: opened.hold, amount, expiresAt: new Date(opened.expires_at), used: amount };
    let result: T;
    try {
      result = await job(hold);
    } catch (error) {
      // The job's error counts. A hold that is not released ends at its expiry.
      await this.releaseHold(user, hold.id).catch(() => undefined);
      throw error;
    }
    try {
      await this.#charge(user, hold);
    } catch (cause) {
      throw new HoldCommitError(hold.id, hold.used, result, cause);
    }
    return result;
  }

  /** Takes what a job used. An earlier run of the same job may have committed or released the hold. */
  async #charge(user: string, { id, amount, used }: HeldCredits): Promise<void> {
    try {
      await this.commitHold(user, id, used, used > amount ? { extend: true } : {});
    } catch (error) {
      if (!(error instanceof ConflictError)) throw error;
      if (error.code === "hold_released" && used > 0)
        await this.consume(user, used, { key: `after ${id}` });
      else if (error.code !== "hold_released" && error.code !== "hold_committed") throw error;
    }
  }

  /** Holds credits for a job. `withHold` also ends the hold. */
  hold(user: string, amount: number, options: KeyOption & { ttlSeconds?: number } = {}): Promise<Hold> {
    const body = { amount, ttl_seconds: options.ttlSeconds ?? 900 };
    return this.#call("POST", ["users", user, "credits", "holds"], { body, ...idempotent(options) });
  }

  /** Takes `amount` credits of a hold, with `extend` also more than it holds. */
  commitHold(
    user: string,
    hold: string,
    amount: number,
    options: { extend?: boolean } = {},
  ): Promise<HoldCommitted> {
    const body = { amount, ...options };
    return this.#call("POST", ["users", user, "credits", "holds", hold, "commit"], { body });
  }

  /** Ends a hold without a spend. */
  releaseHold(user: string, hold: string): Promise<HoldReleased> {
    return this.#call("POST", ["users", user, "credits", "holds", hold, "release"], { body: {} });
  }

  /**
   * Opens a checkout: redirect the customer to `url`. The same request within an hour gives the same session;
   * a new `key` gives a new one. Throws `AlreadySubscribedError` if the user has a subscription.
   */
  checkout(user: string, what: CheckoutOptions, options: KeyOption = {}): Promise<CheckoutSession> {
    const body = { ...what, user_id: user };
    return this.#call("POST", ["checkout-sessions"], {
      body,
      ...options,
      timeoutMs: STRIPE_TIMEOUT_MS,
    });
  }

  /** What is sold, with Stripe's amounts: for a page of prices. */
  catalog(): Promise<Catalog> {
    return this.#call("GET", ["catalog"], { timeoutMs: STRIPE_TIMEOUT_MS });
  }

  /**
   * Opens Stripe's customer portal: redirect the customer to `url` at once, and do not store it. `flow` opens
   * it for one purpose, such as a new card.
   */
  portal(user: string, options: PortalOptions = {}): Promise<PortalSession> {
    return this.#call("POST", ["users", user, "portal"], {
      body: options,
      timeoutMs: STRIPE_TIMEOUT_MS,
    });
  }

  /** How far payment and set-up of a checkout session are. */
  setupStatus(session: string): Promise<SetupStatus> {
    const query = { session_id: session };
    return this.#call("GET", ["portal", "setup-status"], { query, timeoutMs: STRIPE_TIMEOUT_MS });
  }

  /** Reports that the user has set a password. */
  async reportPassword(user: string): Promise<void> {
    await this.#call("POST", ["portal", "password-set"], { body: { user_id: user } });
  }

  /** Reports how far your app has set the user up. */
  async reportProvisioning(user: string, state: ProvisioningState): Promise<void> {
    await this.#call("POST", ["portal", "provisioning"], { body: { user_id: user, state } });
  }

  /** Reads an order with its history. `order` is its checkout session, `cs_…`. */
  getOrder(user: string, order: string): Promise<Order> {
    return this.#call("GET", ["users", user, "orders", order]);
  }

  /** Changes an order that was read with this `updatedAt`. A failure is not retried: read the order again. */
  updateOrder(user: string, order: string, updatedAt: string, change: OrderChange): Promise<Order> {
    const headers = { "if-match": updatedAt };
    return this.#call("PATCH", ["users", user, "orders", order], { body: change, headers, retries: 0 });
  }

  async #call<T>(method: string, path: string[], call: Call = {}): Promise<T> {
    const query = Object.entries(call.query ?? {}).filter(([, value]) => value !== undefined);
    const search = query.length
      ? `?${new URLSearchParams(query.map(([name, value]) => [name, String(value)]))}`
      : "";
    const url = `${this.#url}/${path.map(segment).join("/")}${search}`;
    const headers: Record<string, string> = { ...call.headers, authorization: `Bearer ${this.#token}` };
    if (call.key !== undefined) {
      if (!/^[ -~]{1,255}$/.test(call.key)) {
        throw new TallyhookError(
          "invalid_key",
          "a key has 1 to 255 ASCII characters",
          "Pass another `key`.",
        );
      }
      headers["idempotency-key"] = call.key;
    }
    const request: RequestInit = { method, headers, redirect: "manual" };
    if (call.body !== undefined) {
      headers["content-type"] = "application/json";
      request.body = JSON.stringify(call.body);
    }
    const timeoutMs = Math.max(this.#timeoutMs, call.timeoutMs ?? 0);
    const retries = call.retries ?? this.#retries;
    for (let attempt = 0; ; attempt++) {
      const answer = await this.#attempt(url, request, timeoutMs);
      if ("value" in answer) return answer.value as T;
      if (!answer.passing || attempt >= retries) throw answer.error;
      const backoff = 200 * 2 ** attempt * (0.5 + Math.random() / 2);
      await new Promise((resolve) => setTimeout(resolve, Math.max(backoff, answer.retryAfterMs)));
    }
  }

  async #attempt(
    url: string,
    request: RequestInit,
    timeoutMs: number,
  ): Promise<{ value: unknown } | { error: TallyhookError; passing: boolean; retryAfterMs: number }> {
    let response: Response;
    let text: string;
    try {
      response = await this.#fetch(url, { ...request, signal: AbortSignal.timeout(timeoutMs) });
      text = await response.text();
    } catch (cause) {
      const timedOut = cause instanceof DOMException && cause.name === "TimeoutError";
      const [code, message] = timedOut
        ? ["timeout", `no answer within ${timeoutMs} ms`]
        : ["no_connection", `${this.#url} cannot be reached`];
      return {
        error: new UnavailableError(code, message, undefined, { cause }),
        passing: true,
        retryAfterMs: 0,
      };
    }
    const body = parsed(text);
    if (response.ok && body !== undefined) return { value: body };
    const error = response.ok
      ? new UnavailableError("invalid_answer", "the answer is not JSON", response.status)
      : errorOf(response.status, body);
    const seconds = Number(response.headers.get("retry-after") ?? 0);
    const retryAfterMs = seconds > 0 ? Math.min(seconds * 1000, MAX_WAIT_MS) : 0;
    return { error, passing: response.ok || isPassing(response.status, error.code), retryAfterMs };
  }
}

function idempotent({ key = randomUUID() }: KeyOption): { key: string } {
  return { key };
}

/** A path segment. A URL cannot have the segments `.` and `..`, also encoded: they name another route. */
function segment(text: string): string {
  if (text === "." || text === ".." || text === "") {
    const message = `${JSON.stringify(text)} cannot be part of a URL`;
    throw new TallyhookError("invalid_id", message, "Use another id.");
  }
  return encodeURIComponent(text);
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
