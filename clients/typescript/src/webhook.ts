import { Webhook } from "standardwebhooks";

import { TallyhookError, WebhookVerificationError } from "./errors.js";
import type { components } from "./schema.js";

/** A message of tallyhook to your app. `type` tells what `data` has beside the account. */
export type Message = components["schemas"]["Message"];

/** The headers of a request: of `fetch`, or of Node's `http`. */
export type WebhookHeaders = Headers | Record<string, string | string[] | undefined>;

export interface VerifiedWebhook {
  /** The message's id, which is the same at every attempt. Ignore an id that you have processed. */
  id: string;
  message: Message;
}

/**
 * Verifies a message of tallyhook and returns it.
 *
 * @param body the raw body, as it came; a body that was parsed and written again has another signature
 * @param secret the deployment's `PROVISION_SECRET`, `whsec_…`; default: that variable of the environment
 * @throws WebhookVerificationError if tallyhook did not sign it within the last five minutes
 */
export function verifyWebhook(
  body: string | Uint8Array,
  headers: WebhookHeaders,
  secret: string | undefined = process.env["PROVISION_SECRET"],
): VerifiedWebhook {
  const webhook = verifier(secret);
  const names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
  const signed = Object.fromEntries(names.map((name) => [name, header(headers, name)]));
  try {
    const text = typeof body === "string" ? body : new TextDecoder("utf-8", { fatal: true }).decode(body);
    const message = webhook.verify(text, signed) as Message;
    return { id: signed["webhook-id"] ?? "", message };
  } catch (error) {
    throw new WebhookVerificationError(error instanceof Error ? error.message : String(error), {
      cause: error,
    });
  }
}

function verifier(secret: string | undefined): Webhook {
  try {
    return new Webhook(secret ?? "");
  } catch (cause) {
    const advice = "Pass `secret` or set PROVISION_SECRET: whsec_ and base64.";
    throw new TallyhookError("not_configured", "secret is missing or wrong", advice, { cause });
  }
}

function header(headers: WebhookHeaders, name: string): string {
  if (typeof headers.get === "function") return headers.get(name) ?? "";
  const value = (headers as Record<string, string | string[] | undefined>)[name];
  return Array.isArray(value) ? (value[0] ?? "") : (value ?? "");
}
