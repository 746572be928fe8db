import { forUser, tallyhook } from "../../../lib/app.js";

export const GET = forUser(async (user) => Response.redirect((await tallyhook().portal(user)).url, 303));
