import { forUser, tallyhook } from "../../../lib/app.js";
import { summarize } from "../../../lib/model.js";

export const POST = forUser(async (user, request) => {
  const { id, text } = await request.json();
  const job = async (hold) => {
    const { summary, tokens } = await summarize(text);
    hold.used = tokens;
    return summary;
  };
  return Response.json({ summary: await tallyhook().withHold(user, 200, job, { key: `summary-${id}` }) });
});
