import { forUser, tallyhook } from "../../../lib/app.js";

export const POST = forUser(async (user, request) => {
  const { id } = await request.json();
  const { credits } = await tallyhook().consume(user, 10, { key: `export-${id}` });
  return Response.json({ credits });
});
