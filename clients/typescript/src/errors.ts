/** An error of this client. `code` is stable, `message` is for a person, `advice` says what to do. */
export class TallyhookError extends Error {
  override name = "TallyhookError";
  /** What to do. */
  readonly advice: string;

  constructor(
    /** The `error` of the answer, or one of this client's own codes. */
    readonly code: string,
    message: string,
    advice: string,
    options?: ErrorOptions,
  ) {
    super(`${code}: ${message}`, options);
    this.advice = advice;
  }
}

/** tallyhook answered with an error. `body` is the answer as it came. */
export class ApiError extends TallyhookError {
  override name = "ApiError";

  constructor(
    readonly status: number,
    code: string,
    message: string,
    readonly body: unknown,
    advice = "The message says what is wrong with the request.",
  ) {
    super(code, message, advice);
  }
}

/** 400, 412, 413 or 428: the request is wrong. A repetition fails again. */
export class InvalidRequestError extends ApiError {
  override name = "InvalidRequestError";
}

/** 401, or a token that the deployment lacks. */
export class AuthenticationError extends ApiError {
  override name = "AuthenticationError";

  constructor(status: number, code: string, message: string, body: unknown) {
    super(status, code, message, body, "Send the deployment's APP_API_TOKEN as `token`.");
  }
}

/** 402: the user has too few credits. Nothing was spent. */
export class InsufficientCreditsError extends ApiError {
  override name = "InsufficientCreditsError";

  constructor(status: number, code: string, message: string, body: unknown) {
    super(status, code, message, body, "Offer a pack or a larger plan: `checkout`.");
  }
}

/** 404: no such user, order, hold, spend or session. */
export class NotFoundError extends ApiError {
  override name = "NotFoundError";

  constructor(status: number, code: string, message: string, body: unknown) {
    super(status, code, message, body, "`createUser` creates a user; other ids come from earlier answers.");
  }
}

/** 409: the request contradicts an earlier one, or the state of the user. */
export class ConflictError extends ApiError {
  override name = "ConflictError";
}

/** 409 `already_subscribed`: the user has a subscription, and changes the plan in the billing portal. */
export class AlreadySubscribedError extends ConflictError {
  override name = "AlreadySubscribedError";
  /** Where to send the customer; null if Stripe made no portal session. */
  readonly portalUrl: string | null;

  constructor(status: number, code: string, message: string, body: unknown) {
    super(status, code, message, body, "Redirect the customer to `portalUrl`.");
    this.portalUrl = (body as { portal_url?: string | null }).portal_url ?? null;
  }
}

/** 502: Stripe refused or failed. `message` is Stripe's. */
export class StripeFailedError extends ApiError {
  override name = "StripeFailedError";

  constructor(status: number, code: string, message: string, body: unknown) {
    super(
      status,
      code,
      message,
      body,
      "Read the message; `body.stripe.request_id` finds the call at Stripe.",
    );
  }
}

/** 429, 5xx, a time-out or no connection, also after the retries. The request may have taken effect. */
export class UnavailableError extends TallyhookError {
  override name = "UnavailableError";

  constructor(
    code: string,
    message: string,
    /** The last status; undefined if no answer came. */
    readonly status?: number,
    options?: ErrorOptions,
  ) {
    super(code, message, "Repeat the call later, with the same `key`: it takes effect once.", options);
  }
}

/** A webhook that tallyhook did not sign, or that is too old. Answer 400 and do nothing. */
export class WebhookVerificationError extends TallyhookError {
  override name = "WebhookVerificationError";

  constructor(message: string, options?: ErrorOptions) {
    super("invalid_webhook", message, "Pass the raw body, all headers, and PROVISION_SECRET.", options);
  }
}

/**
 * The job of `withHold` is done, but its credits could not be taken. `result` is what the job returned,
 * `cause` why. Deliver the result or not, and try `commitHold(user, hold, used)` again.
 */
export class HoldCommitError<T = unknown> extends TallyhookError {
  override name = "HoldCommitError";

  constructor(
    readonly hold: string,
    readonly used: number,
    readonly result: T,
    cause: unknown,
  ) {
    super(
      cause instanceof TallyhookError ? cause.code : "commit_failed",
      `the job is done, but ${used} credits of ${hold} could not be taken`,
      "`result` has the job's result; call `commitHold` again.",
      { cause },
    );
  }
}

const BY_STATUS = {
  400: InvalidRequestError,
  401: AuthenticationError,
  402: InsufficientCreditsError,
  404: NotFoundError,
  409: ConflictError,
  412: InvalidRequestError,
  413: InvalidRequestError,
  428: InvalidRequestError,
  502: StripeFailedError,
} as const;

/** The error for an answer that is not 2xx. */
export function errorOf(status: number, body: unknown): TallyhookError {
  const { error, message } = (typeof body === "object" && body !== null ? body : {}) as Record<
    string,
    unknown
  >;
  const code = typeof error === "string" ? error : `http_${status}`;
  const text = typeof message === "string" ? message : `tallyhook answered ${status}`;
  if (isPassing(status, code)) return new UnavailableError(code, text, status);
  if (code === "already_subscribed") return new AlreadySubscribedError(status, code, text, body);
  if (code === "token_not_configured") return new AuthenticationError(status, code, text, body);
  const kind = BY_STATUS[status as keyof typeof BY_STATUS] ?? ApiError;
  return new kind(status, code, text, body);
}

/**
 * Whether the same request may succeed later. A gateway's answer has no code of tallyhook. Of Stripe's
 * failures (502) the API has already repeated those that pass.
 */
export function isPassing(status: number, code: string): boolean {
  return (
    status === 429 || (status >= 500 && ["store_unavailable", "busy", `http_${status}`].includes(code))
  );
}
