// The views of parked events, reconciliation and the audit.

const JOB_SUBJECTS = { provision: "the first payment", account: "tier and credits" };
const jobSubject = ({ job, about }) =>
  [JOB_SUBJECTS[job] ?? job.replaceAll("_", " "), about].filter(Boolean).join(" ");
const CAUSES = {
  no_user: "The user is unknown",
  invalid_user: "The user id cannot be used",
  unknown_price: "A price is not in the catalog",
  unknown_name: "A name is not in the catalog",
  unnamed_purchase: "The session does not name what was bought",
  truncated_list: "Stripe's list is truncated",
  quantity: "A number is out of range",
  no_period: "An invoice without a period",
  no_grant: "A refund of a payment that has granted nothing yet",
  conflict: "The same payment with another amount",
  payload_mismatch: "The same event with another content",
  message: "A message that is not an event",
  unreadable: "It cannot be read",
  retries_used_up: "Every attempt failed",
};

async function parkedView() {
  const [{ groups, complete }, unreported] = await Promise.all([
    get("/admin/stripe/parked"),
    get("/admin/provisioning"),
  ]);
  const body = groups.map((group) =>
    card(
      CAUSES[group.reason] ?? (group.reason ?? group.status).replaceAll("_", " "),
      h(
        "p",
        { class: "row" },
        pill(group.status),
        h("strong", null, group.events === 1 ? "1 event" : `${number(group.events)} events`),
        group.waits_for && code(group.waits_for.slice(group.waits_for.indexOf("#") + 1)),
        h("span", { class: "muted" }, "oldest ", when(group.oldest, true)),
      ),
      h("p", null, group.advice.text),
      h("p", { class: "row" }, adviceButton(group.advice, group.events === 1 ? group.examples[0] : null)),
      facts([
        ["Types", group.types.join(", ")],
        ["Users", group.users.length > 0 && h("span", { class: "ids" }, group.users.map(userLink))],
        [
          group.events > group.examples.length ? "Some of them" : "Events",
          h("span", { class: "ids" }, group.examples.map(eventLink)),
        ],
      ]),
    ),
  );
  return {
    title: "Parked",
    body: [
      !complete &&
        notice(
          "warn",
          null,
          h("p", null, "There are more events than were read; the numbers are lower bounds."),
        ),
      unreported.jobs.length > 0 && unreportedCard(unreported),
      body.length > 0 || unreported.jobs.length > 0
        ? body
        : h(
            "section",
            { class: "card" },
            empty(
              "No event waits. Parked events wait for an operator or for another event.",
            ),
          ),
      body.length > 0 &&
        h(
          "p",
          { class: "row" },
          changeButton("Send again what is due", () => sendDue(), { class: "quiet" }),
        ),
    ],
  };
}

/** Changes that could not be reported to the app, each with a button that reports it again. */
function unreportedCard({ jobs, more }) {
  const again = async ({ job, order, about, user_id }) => {
    const answer = await confirmed({
      title: "Report to the app again",
      confirm: "Report",
      what: h("p", null, [
        `The app's webhook (PROVISION_URL) is called for ${user_id} with the same message id as before, `,
        "so the app recognises a change that it already has.",
      ]),
    });
    if (!answer) return;
    await post("/admin/provisioning", {
      job,
      order: order ?? undefined,
      about: about ?? undefined,
      user_id,
      reason: answer.reason,
    });
    toast(`The change of ${user_id} is reported to the app again.`);
    await new Promise((resolve) => setTimeout(resolve, 1200));
    render();
  };
  return card(
    "Not reported to the app",
    h("p", null, "Every attempt to call PROVISION_URL failed. The accounts themselves are right."),
    table(
      "Changes that were not reported to the app",
      [
        { title: "User", of: (job) => userLink(job.user_id) },
        { title: "About", of: (job) => (job.order ? orderLink(job.order) : jobSubject(job)) },
        {
          title: "Why not",
          of: (job) => [
            h("span", { class: "reason" }, sentence(job.reason)),
            h(
              "span",
              { class: "muted" },
              `${number(job.attempts)} attempts, last `,
              when(job.finished_at, true),
            ),
          ],
        },
        mayChange() && {
          title: "Act",
          of: (job) =>
            button("Report again", () => again(job), {
              class: "quiet small-button",
              "aria-label": `Report again about ${job.user_id}, ${job.job}`,
            }),
        },
      ].filter(Boolean),
      jobs,
    ),
    more && h("p", { class: "muted" }, "Not all of them are shown."),
  );
}

async function retryAll(title, what, body) {
  const answer = await confirmed({ title, what: h("p", null, what), confirm: "Send again" });
  if (!answer) return;
  const { report } = await post("/admin/stripe/retry-webhooks", { ...body, reason: answer.reason });
  toast(
    `${number(report.sent)} sent, ${number(report.waiting)} still wait` +
      (report.more ? "; there are more, so send again." : "."),
  );
  await new Promise((resolve) => setTimeout(resolve, 1200));
  render();
}

const sendDue = () =>
  retryAll(
    "Send again what is due",
    "Events that wait for a customer, price or payment that exists now are sent to their queues again.",
    {},
  );
const sendFailed = () =>
  retryAll(
    "Send all failed events again",
    "Every failed event is sent to its queue again. Changes that it made are not made again.",
    { status: "failed" },
  );

async function reconcileView() {
  if (!mayChange()) {
    const text = `This needs the role operator; ${session.me.name} has the role ${session.me.role}.`;
    return { title: "Reconcile", body: notice("info", null, h("p", null, text)) };
  }
  const user = h("input", { name: "user", autocomplete: "off", spellcheck: "false" });
  const cap = h("input", {
    name: "cap",
    type: "number",
    min: 1,
    max: 5000,
    value: 500,
    inputmode: "numeric",
  });
  const result = h("div", { "aria-live": "polite" });
  const options = () => ({
    cap: Number(cap.value) || 500,
    ...(user.value.trim() ? { user: user.value.trim() } : {}),
  });
  const run = async (body) => {
    const progress = h(
      "p",
      { class: "busy", role: "status" },
      h("span", { class: "spinner", "aria-hidden": "true" }),
      "Reading Stripe…",
    );
    result.replaceChildren(progress);
    try {
      const report = await reconcile(body, (sofar) => {
        const read = Object.entries(sofar.read)
          .map(([name, count]) => `${number(count)} ${name}`)
          .join(", ");
        const verb = body.dry_run ? "would be repaired" : "repaired";
        progress.lastChild.textContent = `Read: ${read || "nothing"}; ${number(sofar.changed)} ${verb}.`;
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
        h(
          "p",
          null,
          `Stripe's state is applied to ${body.user || "all accounts"}, by the same rules as events. `,
          `At most ${number(body.cap)} changes are made, and credits are never taken.`,
        ),
        h(
          "ul",
          null,
          Object.entries(report.found).map(([name, count]) =>
            h("li", null, `${name.replaceAll("_", " ")}: ${number(count)}`),
          ),
        ),
      ],
      confirm: "Apply",
    });
    if (answer) await run({ ...body, dry_run: false, reason: answer.reason });
  };
  const form = h(
    "form",
    { class: "card filters", "aria-label": "Reconcile" },
    h(
      "p",
      { class: "muted wide" },
      "Compares every subscription, payment and undelivered event of Stripe with the accounts. ",
      "A dry run changes nothing; afterwards you can apply what it found.",
    ),
    field("Only this user", user, "Leave empty to compare all users."),
    field("Maximum changes", cap),
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
  const read =
    Object.entries(report.read)
      .map(([name, count]) => `${number(count)} ${name}`)
      .join(", ") || "nothing";
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
    report.stopped &&
      notice("warn", "It stopped early", h("p", null, `${report.stopped}. Run it again to continue.`)),
    h(
      "p",
      null,
      `Read ${read}. `,
      some
        ? `${number(report.changed)} ${verb}, ${number(report.left.length)} left to an operator.`
        : "Nothing differs.",
    ),
    some &&
      h(
        "p",
        { class: "row" },
        Object.entries(report.found).map(([name, count]) => pill(`${name} ${number(count)}`, "info")),
      ),
    report.dry_run &&
      report.changed > 0 &&
      h(
        "p",
        { class: "row" },
        button(`Apply ${number(report.changed)}`, () => apply(report, body)),
      ),
    report.changes.length > 0 && [
      h("h3", null, report.dry_run ? "Would be repaired" : "Repaired"),
      table("Repairs", columns, rows(report.changes)),
    ],
    report.left.length > 0 && [
      h("h3", null, "Left to an operator"),
      table(
        "Left to an operator",
        [columns[0], columns[1], { title: "Why", of: (left) => left.why }],
        rows(report.left),
      ),
    ],
    report.failures.length > 0 && [
      h("h3", null, "Could not be read or written"),
      table(
        "Failures",
        [
          { title: "Object", of: (failure) => code(failure.object) },
          { title: "Why", of: (failure) => failure.error },
        ],
        rows(report.failures),
      ),
    ],
  );
}

async function auditView() {
  const columns = [
    { title: "When", of: (audit) => when(audit.at) },
    {
      title: "Who",
      of: (audit) => [
        audit.actor,
        audit.claimed && h("p", { class: "small muted" }, `the request says: ${audit.claimed}`),
      ],
    },
    {
      title: "Did",
      of: (audit) => [h("strong", null, (audit.act ?? "").replaceAll(/[_-]/g, " ")), " ", audit.target],
    },
    { title: "Why", of: (audit) => audit.reason || h("span", { class: "muted" }, "–") },
  ];
  const page = await get("/admin/audit");
  const more = async (next) => {
    const { audits, next: after } = await get(`/admin/audit${query({ next })}`);
    return { items: audits, next: after };
  };
  const draw = (audits) =>
    audits.length === 0
      ? empty("No operator has changed anything yet.")
      : table("Changes by operators, newest first", columns, audits);
  return {
    title: "Audit",
    body: h(
      "section",
      { class: "card", "aria-label": "Changes by operators" },
      paged(page.audits, page.next, more, draw),
    ),
  };
}
