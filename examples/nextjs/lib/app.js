import { InsufficientCreditsError, Tallyhook, WebhookVerificationError } from "tallyhook";

// A build runs without the variables, so the client is made at the first request.
let client;
export const tallyhook = () => (client ??= new Tallyhook()); // TALLYHOOK_URL, APP_API_TOKEN

// Your app has a database. Next.js bundles each route by itself, so this example's data is in `globalThis`.
export const store = (globalThis.store ??= {
  projects: new Map(),
  accounts: new Map(),
  welcomed: [],
  processed: new Set(), // a table with a unique key, written with what a message does
});

/** A route for a user. Your app takes the user from its session. */
export function forUser(route) {
  return answering(async (request) => {
    const user = request.headers.get("x-user");
    return user ? route(user, request) : new Response(null, { status: 401 });
  });
}

/** Answers the errors of a route that the customer can do something about. */
export function answering(route) {
  return async (request) => {
    try {
      return await route(request);
    } catch (error) {
      if (error instanceof WebhookVerificationError)
        return Response.json({ error: error.code }, { status: 400 });
      if (error instanceof InsufficientCreditsError) {
        return Response.json({ error: error.code, upgrade: "/api/upgrade" }, { status: 402 });
      }
      throw error;
    }
  };
}
