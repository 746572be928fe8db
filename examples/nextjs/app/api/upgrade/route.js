import { AlreadySubscribedError } from "tallyhook";

import { forUser, tallyhook } from "../../../lib/app.js";

export const GET = forUser(async (user) => {
  try {
    return Response.redirect((await tallyhook().checkout(user, { plan: "pro" })).url, 303);
  } catch (error) {
    if (!(error instanceof AlreadySubscribedError && error.portalUrl)) throw error;
    return Response.redirect(error.portalUrl, 303);
  }
});
