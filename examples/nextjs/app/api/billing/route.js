import { forUser, tallyhook } from "../../../lib/app.js";

export const GET = forUser(async (user) => {
  try {
    return Response.redirect((await tallyhook().portal(user)).url, 303);
  } catch (error) {
    if (error.code !== "no_customer") throw error;
    // The user bought nothing yet.
    return new Response(null, { status: 303, headers: { location: "/api/upgrade" } });
  }
});
