export * from "./client.js";
export {
  AlreadySubscribedError,
  ApiError,
  AuthenticationError,
  ConflictError,
  HoldCommitError,
  InsufficientCreditsError,
  InvalidRequestError,
  NotFoundError,
  StripeFailedError,
  TallyhookError,
  UnavailableError,
  WebhookVerificationError,
} from "./errors.js";
export type { components } from "./schema.js";
export * from "./webhook.js";
