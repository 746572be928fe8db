import { forUser, store, tallyhook } from "../../../lib/app.js";

export const POST = forUser(async (user, request) => {
  const { name } = await request.json();
  const mine = store.projects.get(user) ?? [];
  const { allowed, limit } = await tallyhook().check(user, { feature: "projects", used: mine.length });
  if (!allowed)
    return Response.json({ error: "limit_reached", limit, upgrade: "/api/upgrade" }, { status: 402 });
  store.projects.set(user, [...mine, name]);
  return Response.json({ projects: mine.length + 1 }, { status: 201 });
});
