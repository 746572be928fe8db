import express from "express";
import {
  AlreadySubscribedError,
  InsufficientCreditsError,
  Tallyhook,
  WebhookVerificationError,
  verifyWebhook,
} from "tallyhook";

import { summarize } from "./model.js";

const tallyhook = new Tallyhook(); // TALLYHOOK_URL, APP_API_TOKEN
const app = express();

// Your app has a database. The messages' ids are a table with a unique key, written with what a message does.
const projects = new Map();
const accounts = new Map();
const welcomed = [];
const processed = new Set();

// The raw body: a body that was parsed has another signature. This route comes before `express.json()`.
app.post(
  "/webhooks/tallyhook",
  express.raw({ type: "application/json", limit: "1mb" }),
  (request, response) => {
    const { id, message } = verifyWebhook(request.body, request.headers); // PROVISION_SECRET
    if (!processed.has(id)) {
      handle(message);
      processed.add(id);
    }
    response.sendStatus(204);
  },
);

function handle({ type, data }) {
  const known = accounts.get(data.user_id);
  if (!known || data.version >= known.version) accounts.set(data.user_id, data);
  if (type === "payment.confirmed") welcomed.push(data.user_id); // set the user up, send an e-mail
}

app.use(express.json());
// Your app takes the user from its session.
app.use((request, response, next) => {
  request.user = request.get("x-user");
  if (request.user) next();
  else response.sendStatus(401);
});

app.post("/signup", async (request, response) => {
  const { tier, credits } = await tallyhook.createUser(request.user);
  response.json({ tier, credits });
});

app.post("/projects", async (request, response) => {
  const mine = projects.get(request.user) ?? [];
  const { allowed, limit } = await tallyhook.check(request.user, {
    feature: "projects",
    used: mine.length,
  });
  if (!allowed) return response.status(402).json({ error: "limit_reached", limit, upgrade: "/upgrade" });
  projects.set(request.user, [...mine, request.body.name]);
  response.status(201).json({ projects: mine.length + 1 });
});

app.post("/exports", async (request, response) => {
  const { credits } = await tallyhook.consume(request.user, 10, { key: `export-${request.body.id}` });
  response.json({ credits });
});

app.post("/summaries", async (request, response) => {
  const { id, text } = request.body;
  const job = async (hold) => {
    const { summary, tokens } = await summarize(text);
    hold.used = tokens;
    return summary;
  };
  response.json({ summary: await tallyhook.withHold(request.user, 200, job, { key: `summary-${id}` }) });
});

app.get("/upgrade", async (request, response) => {
  try {
    response.redirect(303, (await tallyhook.checkout(request.user, { plan: "pro" })).url);
  } catch (error) {
    if (!(error instanceof AlreadySubscribedError && error.portalUrl)) throw error;
    response.redirect(303, error.portalUrl);
  }
});

app.get("/billing", async (request, response) => {
  try {
    response.redirect(303, (await tallyhook.portal(request.user)).url);
  } catch (error) {
    if (error.code !== "no_customer") throw error;
    response.redirect(303, "/upgrade"); // the user bought nothing yet
  }
});

app.get("/me", (request, response) => {
  const { tier, credits } = accounts.get(request.user) ?? {};
  response.json({ tier, credits, welcomes: welcomed.filter((user) => user === request.user).length });
});

app.use((error, request, response, next) => {
  if (error instanceof WebhookVerificationError) return response.status(400).json({ error: error.code });
  if (error instanceof InsufficientCreditsError) {
    return response.status(402).json({ error: error.code, upgrade: "/upgrade" });
  }
  next(error);
});

app.listen(process.env.PORT ?? 3000, "127.0.0.1");
