import { verifyWebhook } from "tallyhook";

import { answering, store } from "../../../../lib/app.js";

export const POST = answering(async (request) => {
  // The raw body: a body that was parsed has another signature.
  const { id, message } = verifyWebhook(await request.text(), request.headers); // PROVISION_SECRET
  if (!store.processed.has(id)) {
    handle(message);
    store.processed.add(id);
  }
  return new Response(null, { status: 204 });
});

function handle({ type, data }) {
  const known = store.accounts.get(data.user_id);
  if (!known || data.version >= known.version) store.accounts.set(data.user_id, data);
  if (type === "payment.confirmed") store.welcomed.push(data.user_id); // set the user up, send an e-mail
}
