// The event log, and the view of one event.

const TYPES = [
  "checkout.session.completed",
  "checkout.session.async_payment_succeeded",
  "checkout.session.async_payment_failed",
  "checkout.session.expired",
  "customer.subscription.created",
  "customer.subscription.updated",
  "customer.subscription.deleted",
  "customer.subscription.paused",
  "customer.subscription.resumed",
  "customer.subscription.trial_will_end",
  "invoice.paid",
  "invoice_payment.paid",
  "invoice.payment_failed",
  "invoice.payment_action_required",
  "charge.refunded",
  "refund.created",
  "refund.updated",
  "refund.failed",
  "charge.dispute.created",
  "charge.dispute.updated",
  "charge.dispute.closed",
  "charge.dispute.funds_withdrawn",
  "charge.dispute.funds_reinstated",
  "customer.deleted",
];
/** Characters of a payload that are shown at first. A phone hangs when it lays out 500 KB at once. */
const MAX_SHOWN = 20000;

/** The reason, unless it only repeats the outcome. */
function reasonWords(reason) {
  const own = {
    updated: "",
    type: "a type that no family handles",
    livemode: "of the other mode",
    account: "of a connected account",
    context: "of another account of an organization",
  };
  return reason ? (own[reason] ?? reason.replaceAll("_", " ")) : "";
}

const EVENT_COLUMNS = [
  { title: "Received", of: (event) => when(event.received_at) },
  { title: "Event", of: (event) => [h("strong", null, event.type), h("br"), eventLink(event.id)] },
  {
    title: "Outcome",
    of: (event) => [
      pill(event.status),
      reasonWords(event.reason) && h("span", { class: "small muted reason" }, reasonWords(event.reason)),
    ],
  },
  { title: "User", of: (event) => userLink(event.user_id) },
];

function filterForm(values) {
  const option = (value, text) => h("option", { value, selected: (values.status ?? "") === value }, text);
  const types = h(
    "datalist",
    { id: "types" },
    TYPES.map((type) => h("option", { value: type })),
  );
  const input = (name, attributes) =>
    h("input", { name, value: values[name] ?? "", autocomplete: "off", spellcheck: "false", ...attributes });
  const form = h(
    "form",
    { class: "card filters", role: "search", "aria-label": "Filter events" },
    field(
      "Outcome",
      h(
        "select",
        { name: "status" },
        option("", "any"),
        ["processed", "parked", "failed", "ignored", "dismissed"].map((status) => option(status, status)),
      ),
    ),
    field("Type", input("type", { list: "types" })),
    types,
    field("User", input("user")),
    field("Event id", input("id")),
    field("From", input("from", { type: "datetime-local", value: local(values.from) })),
    field("To", input("to", { type: "datetime-local", value: local(values.to) })),
    h(
      "div",
      { class: "row end wide" },
      h("a", { class: "button quiet", href: "#/events" }, "Clear"),
      h("button", { type: "submit" }, "Filter"),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const set = Object.fromEntries(
      [...new FormData(form)].map(([name, value]) => [name, String(value).trim()]),
    );
    for (const name of ["from", "to"])
      if (set[name]) set[name] = new Date(set[name]).toISOString().replace(/\.\d+Z/, "Z");
    location.hash = `#/events${query(set)}`;
  });
  return form;
}

/** A time as the value of a `datetime-local` input. */
function local(text) {
  if (!text) return "";
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return "";
  return new Date(date.getTime() - date.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
}

/** A list with a button that adds the next page. The button disappears after the last page. */
function paged(first, next, more, draw) {
  const place = h("div", null, draw(first));
  const all = [...first];
  let cursor = next;
  const older = button(
    "Show more",
    async () => {
      const page = await more(cursor);
      all.push(...page.items);
      cursor = page.next;
      place.replaceChildren(...nodes([draw(all)]));
      older.hidden = !cursor;
      announce(`${all.length} shown`);
    },
    { class: "quiet" },
  );
  older.hidden = !cursor;
  return [place, h("p", { class: "row" }, older)];
}

async function eventsView({ parameters }) {
  const names = ["status", "type", "user", "id", "from", "to"];
  const values = Object.fromEntries(names.map((name) => [name, parameters[name] ?? ""]));
  const filtered = names.some((name) => values[name]);
  // Without a filter, request only the last week: the API would read a nearly empty log day by day.
  if (!filtered) values.from = new Date(Date.now() - 7 * 86400e3).toISOString().replace(/\.\d+Z/, "Z");
  const page = await get(`/admin/stripe/webhook-logs${query(values)}`);
  const draw = (events) =>
    events.length === 0
      ? empty(
          filtered
            ? "No event fits this filter."
            : "No event was received in the last week. Stripe sends events when something happens.",
        )
      : table("Events, newest first", EVENT_COLUMNS, events);
  const more = async (next) => {
    const { events, next: after } = await get(`/admin/stripe/webhook-logs${query({ ...values, next })}`);
    return { items: events, next: after };
  };
  return {
    title: "Events",
    body: [
      filterForm(values),
      h("section", { class: "card", "aria-label": "Events" }, paged(page.events, page.next, more, draw)),
    ],
  };
}

function payloadCard(payload) {
  if (payload === null)
    return card(
      "Payload",
      empty(
        "The log keeps no payload of this event: it was ignored, it is too large, or KeepPayloads is false.",
      ),
    );
  const text = typeof payload === "string" ? payload : JSON.stringify(payload, null, 2);
  const shown = h("pre", { tabindex: "0", "aria-label": "The payload as text" }, text.slice(0, MAX_SHOWN));
  const copy = button(
    "Copy",
    async () => {
      await navigator.clipboard.writeText(text);
      toast("The payload is in the clipboard.");
    },
    { class: "quiet" },
  );
  const all =
    text.length > MAX_SHOWN &&
    button(
      `Show all ${number(Math.ceil(text.length / 1024))} KB`,
      (made) => {
        shown.textContent = text;
        made.remove();
      },
      { class: "quiet" },
    );
  return card("Payload", shown, h("p", { class: "row" }, copy, all));
}

/** Sends an event again, then shows the view again. */
async function sendAgain(id, source) {
  const from =
    source === "stripe"
      ? "Stripe's copy of the event is read and sent through its queue."
      : "The event goes back to its queue as it was received.";
  const answer = await confirmed({
    title: `Send ${id} again`,
    what: [
      h("p", null, from),
      h("p", null, "Changes that it made are not made again: every grant has one ledger entry."),
    ],
    confirm: "Send again",
  });
  if (!answer) return;
  await post("/admin/stripe/retry-webhooks", { source, id, reason: answer.reason });
  toast("The event is in its queue.");
  await new Promise((resolve) => setTimeout(resolve, 1200));
  render();
}

/** Dismisses an event that does not concern this deployment, then shows the view again. */
async function dismiss(id) {
  const answer = await confirmed({
    title: `Dismiss ${id}`,
    what: [
      h("p", null, "The event is not applied, not retried and not alerted again."),
      h("p", null, "It stays in the log as dismissed, and can be sent again from there."),
    ],
    confirm: "Dismiss",
    danger: true,
  });
  if (!answer) return;
  await post(`/admin/stripe/webhook-logs/${encodeURIComponent(id)}/dismiss`, { reason: answer.reason });
  toast("The event is dismissed.");
  render();
}

async function eventView({ id }) {
  const { event, payload } = await get(`/admin/stripe/webhook-logs/${encodeURIComponent(id)}`);
  const open = event.status === "parked" || event.status === "failed";
  const sendable = open || event.status === "dismissed";
  const buttons = [
    changeButton("Send again", () => sendAgain(id, "log"), {
      class: open ? null : "quiet",
      disabled: sendable ? null : true,
    }),
    open && changeButton("Dismiss", () => dismiss(id), { class: "quiet" }),
    changeButton("Replay from Stripe", () => sendAgain(id, "stripe"), { class: "quiet" }),
  ];
  const about = card(
    "Result",
    open && event.advice && adviceNotice(event.advice, event.message, id),
    facts([
      ["Outcome", [pill(event.status), " ", reasonWords(event.reason)]],
      ["Message", !open && event.message],
      [
        "Dismissed",
        event.dismissed && [
          `${event.dismissed.reason} (${event.dismissed.actor}, `,
          when(event.dismissed.at),
          ")",
        ],
      ],
      ["User", userLink(event.user_id)],
      ["Waits for", event.waits_for && code(event.waits_for)],
      ["Made at Stripe", when(event.created)],
      ["Received", when(event.received_at)],
      ["Finished", !open && when(event.finished_at)],
      ["Attempts", `${event.attempts}${event.redrives ? `, sent again ${event.redrives} times` : ""}`],
      ["Next try", event.due_at && when(event.due_at)],
      ["Mode", event.livemode === null ? "" : event.livemode ? "live" : "test"],
      ["API version", event.api_version],
      ["Catalog", event.catalog && code(event.catalog)],
      [
        "Names",
        event.objects?.length
          ? h(
              "span",
              { class: "ids" },
              event.objects.map((object) => code(object)),
            )
          : "",
      ],
    ]),
    mayChange() && h("p", { class: "row actions" }, buttons),
  );
  return {
    title: event.type,
    subtitle: code(event.id),
    back: ["#/events", "Events"],
    body: [about, payloadCard(payload)],
  };
}

function adviceNotice(advice, message, id) {
  return notice(
    "warn",
    "What frees it",
    message && h("p", null, sentence(message)),
    h("p", null, advice.text),
    h("p", { class: "row" }, adviceButton(advice, id)),
  );
}

/** The action of an advice, as a button or a link; nothing for a role that may not act. */
function adviceButton(advice, id) {
  if (!mayChange()) return null;
  switch (advice.act) {
    case "link_customer":
      return button(`Link ${advice.target}`, () => linkCustomer({ customer: advice.target }));
    case "reconcile":
      return h("a", { class: "button", href: "#/reconcile" }, "Reconcile");
    case "add_to_catalog":
      return button("It is in the catalog: send again", () => sendDue());
    case "retry":
      return id
        ? button("Send again", () => sendAgain(id, "log"))
        : button("Send all failed again", () => sendFailed());
    default:
      return null;
  }
}
