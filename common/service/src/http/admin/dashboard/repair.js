// What is parked, reconciliation, the audit.

const CAUSES = {
  no_user: "Nobody knows whose this is", invalid_user: "The user id cannot be used", unknown_price: "A price is not in the catalog",
  unknown_name: "A name is not in the catalog", unnamed_purchase: "Nothing says what was bought", truncated_list: "Stripe's list was cut short",
  quantity: "A number is out of range", no_period: "An invoice without a period", no_grant: "A refund of something that granted nothing yet",
  conflict: "The same payment with another amount", payload_mismatch: "The same event with another content", message: "Not an event of ours",
  unreadable: "It cannot be read", retries_used_up: "Every attempt failed",
};

async function parkedView() {
  const [{ groups, complete }, told] = await Promise.all([get("/admin/stripe/parked"), get("/admin/provisioning")]);
  const body = groups.map((group) => card(
    CAUSES[group.reason] ?? (group.reason ?? group.status).replaceAll("_", " "),
    h("p", { class: "row" }, pill(group.status), h("strong", null, group.events === 1 ? "1 event" : `${number(group.events)} events`),
      group.waits_for && code(group.waits_for.slice(group.waits_for.indexOf("#") + 1)), h("span", { class: "muted" }, "oldest ", when(group.oldest, true))),
    h("p", null, group.advice.text),
    h("p", { class: "row" }, adviceButton(group.advice, group.events === 1 ? group.examples[0] : null)),
    facts([
      ["Types", group.types.join(", ")],
      ["Users", group.users.length > 0 && h("span", { class: "ids" }, group.users.map(userLink))],
      [group.events > group.examples.length ? "Some of them" : "Events", h("span", { class: "ids" }, group.examples.map(eventLink))],
    ]),
  ));
  return {
    title: "Parked",
    body: [
      !complete && notice("warn", null, h("p", null, "There is more than was looked at: the numbers are lower bounds.")),
      told.jobs.length > 0 && untoldCard(told),
      body.length > 0 || told.jobs.length > 0 ? body : h("section", { class: "card" }, empty("Nothing waits for anybody. An event is parked here when it needs a person or a later fact; a failed one when every attempt failed.")),
      body.length > 0 && h("p", { class: "row" }, button("Send again what is due", () => sendDue(), { class: "quiet" })),
    ],
  };
}

/** What the app could not be told, each with a button that tells it again. */
function untoldCard({ jobs, more }) {
  const again = async ({ job, user_id }) => {
    const answer = await confirmed({
      title: "Tell the app again", confirm: "Tell it",
      what: h("p", null, `The app's webhook (PROVISION_URL) is called for ${user_id} under the same id as before: an app that had it knows it.`),
    });
    if (!answer) return;
    await post("/admin/provisioning", { job, user_id, reason: answer.reason });
    toast(`The app is told about ${user_id} again.`);
    await new Promise((resolve) => setTimeout(resolve, 1200));
    render();
  };
  return card(
    "The app could not be told",
    h("p", null, "Every attempt to call PROVISION_URL failed. The accounts themselves are right."),
    table("What the app could not be told", [
      { title: "User", of: (job) => userLink(job.user_id) },
      { title: "About", of: (job) => (job.job === "provision" ? "the first payment" : "tier and credits") },
      { title: "Why not", of: (job) => [h("span", { class: "reason" }, sentence(job.reason)), h("span", { class: "muted" }, `${number(job.attempts)} attempts, last `, when(job.finished_at, true))] },
      { title: "Act", of: (job) => button("Tell again", () => again(job), { class: "quiet small-button", "aria-label": `Tell again about ${job.user_id}, ${job.job}` }) },
    ], jobs),
    more && h("p", { class: "muted" }, "There are more than are shown."),
  );
}

async function retryAll(title, what, body) {
  const answer = await confirmed({ title, what: h("p", null, what), confirm: "Send again" });
  if (!answer) return;
  const { report } = await post("/admin/stripe/retry-webhooks", { ...body, reason: answer.reason });
  toast(`${number(report.sent)} sent, ${number(report.waiting)} still wait${report.more ? "; there are more, do it again" : ""}.`);
  await new Promise((resolve) => setTimeout(resolve, 1200));
  render();
}

const sendDue = () => retryAll("Send again what is due", "What waits for a customer, price or payment that is there by now goes back to its queue.", {});
const sendFailed = () => retryAll("Send all failed events again", "Every failed event goes back to its queue. What it did already it does not do again.", { status: "failed" });

async function reconcileView() {
  const user = h("input", { name: "user", autocomplete: "off", spellcheck: "false" });
  const cap = h("input", { name: "cap", type: "number", min: 1, max: 5000, value: 500, inputmode: "numeric" });
  const result = h("div", { "aria-live": "polite" });
  const options = () => ({ cap: Number(cap.value) || 500, ...(user.value.trim() ? { user: user.value.trim() } : {}) });
  const run = async (body) => {
    const progress = h("p", { class: "busy", role: "status" }, h("span", { class: "spinner", "aria-hidden": "true" }), "Reading Stripe…");
    result.replaceChildren(progress);
    try {
      const report = await reconcile(body, (sofar) => {
        const read = Object.entries(sofar.read).map(([name, count]) => `${number(count)} ${name}`).join(", ");
        progress.lastChild.textContent = `Read so far: ${read || "nothing"}; ${number(sofar.changed)} ${body.dry_run ? "would be repaired" : "repaired"}.`;
      });
      result.replaceChildren(...nodes([reportCard(report, body, apply)]));
    } catch (error) {
      result.replaceChildren(notice("bad", "Reconciliation did not run", h("p", null, error.message)));
    }
  };
  const apply = async (report, body) => {
    const answer = await confirmed({
      title: report.changed === 1 ? "Repair 1 difference" : `Repair ${number(report.changed)} differences`,
      what: [
        h("p", null, `What Stripe says is applied ${body.user ? `to ${body.user}` : "to all accounts"}, by the same rules as events; at most ${number(body.cap)} changes. Credits are never taken.`),
        h("ul", null, Object.entries(report.found).map(([name, count]) => h("li", null, `${name.replaceAll("_", " ")}: ${number(count)}`))),
      ],
      confirm: "Apply",
    });
    if (answer) await run({ ...body, dry_run: false, reason: answer.reason });
  };
  const form = h(
    "form", { class: "card filters", "aria-label": "Reconcile" },
    h("p", { class: "muted wide" }, "Compares every subscription, payment and undelivered event of Stripe's with the accounts. A dry run changes nothing; apply what it finds afterwards."),
    field("Only this user", user, "Empty: everything."),
    field("At most so many changes", cap),
    h("div", { class: "row end wide" }, h("button", { type: "submit" }, "Dry run")),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run({ ...options(), dry_run: true });
  });
  return { title: "Reconcile", body: [form, result] };
}

function reportCard(report, body, apply) {
  const some = Object.keys(report.found).length > 0;
  const read = Object.entries(report.read).map(([name, count]) => `${number(count)} ${name}`).join(", ") || "nothing";
  const verb = report.dry_run ? "would be repaired" : report.changed === 1 ? "was repaired" : "were repaired";
  const rows = (list) => list.slice(0, 200);
  const columns = [
    { title: "What", of: (change) => [pill(change.class, "info"), h("br"), code(change.object)] },
    { title: "User", of: (change) => userLink(change.user_id) },
    { title: "Here", of: (change) => words(change.before) },
    { title: report.dry_run ? "Would be" : "Now", of: (change) => words(change.after) },
  ];
  return card(
    report.dry_run ? "Dry run" : "Applied",
    report.stopped && notice("warn", "It stopped early", h("p", null, `${report.stopped}. Running it again goes on.`)),
    h("p", null, `Looked at ${read}. `, some ? `${number(report.changed)} ${verb}, ${number(report.left.length)} left to a person.` : "Nothing differs."),
    some && h("p", { class: "row" }, Object.entries(report.found).map(([name, count]) => pill(`${name} ${number(count)}`, "info"))),
    report.dry_run && report.changed > 0 && h("p", { class: "row" }, button(`Apply ${number(report.changed)}`, () => apply(report, body))),
    report.changes.length > 0 && [h("h3", null, report.dry_run ? "Would be repaired" : "Repaired"), table("Repairs", columns, rows(report.changes))],
    report.left.length > 0 && [h("h3", null, "Left to a person"), table("Left to a person", [columns[0], columns[1], { title: "Why", of: (left) => left.why }], rows(report.left))],
    report.failures.length > 0 && [h("h3", null, "Could not be looked at"), table("Failures", [
      { title: "Object", of: (failure) => code(failure.object) }, { title: "Why", of: (failure) => failure.error },
    ], rows(report.failures))],
  );
}

async function auditView() {
  const columns = [
    { title: "When", of: (audit) => when(audit.at) },
    { title: "Who", of: (audit) => audit.actor },
    { title: "Did", of: (audit) => [h("strong", null, (audit.act ?? "").replaceAll(/[_-]/g, " ")), " ", audit.target] },
    { title: "Why", of: (audit) => audit.reason || h("span", { class: "muted" }, "–") },
  ];
  const page = await get("/admin/audit");
  const more = async (next) => {
    const { audits, next: after } = await get(`/admin/audit${query({ next })}`);
    return { items: audits, next: after };
  };
  const draw = (audits) => (audits.length === 0 ? empty("Nobody has changed anything by hand yet.") : table("Changes by operators, newest first", columns, audits));
  return { title: "Audit", body: h("section", { class: "card", "aria-label": "Changes by operators" }, paged(page.audits, page.next, more, draw)) };
}
