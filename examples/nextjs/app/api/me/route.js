import { forUser, store } from "../../../lib/app.js";

export const GET = forUser(async (user) => {
  const { tier, credits } = store.accounts.get(user) ?? {};
  return Response.json({ tier, credits, welcomes: store.welcomed.filter((name) => name === user).length });
});
