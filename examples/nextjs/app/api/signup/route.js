import { forUser, tallyhook } from "../../../lib/app.js";

export const POST = forUser(async (user) => {
  const { tier, credits } = await tallyhook().createUser(user);
  return Response.json({ tier, credits });
});
