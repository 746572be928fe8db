// The search for users, and the view of one user: the account, Stripe's state and repairs.

async function usersView({ parameters }) {
  const input = h("input", {
    name: "text",
    value: parameters.text ?? "",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
  });
  const results = h("div", { "aria-live": "polite" });
  const search = async (text) => {
    results.replaceChildren(busy("Searching…"));
    try {
      const found = await ask("POST", "/admin/stripe/find", { body: { text } });
      if (found.users.length === 1 && found.customers.length === 0) {
        location.hash = `#/users/${encodeURIComponent(found.users[0].user_id)}`;
        return;
      }
      results.replaceChildren(...nodes([foundCard(found, text)]));
    } catch (error) {
      results.replaceChildren(notice("bad", "That did not work", h("p", null, error.message)));
    }
  };
  const form = h(
    "form",
    { class: "card", role: "search", "aria-label": "Find a user" },
    field(
      "Who?",
      input,
      "A user id, or what the customer wrote to you: an e-mail address, cus_…, sub_… or evt_…",
    ),
    h("div", { class: "row end" }, h("button", { type: "submit" }, "Find")),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search(input.value.trim());
  });
  // An e-mail address does not belong into the browser's history, so the hash has only ids.
  if (parameters.text) search(parameters.text);
  return { title: "Users", body: [form, results] };
}

function foundCard(found, text) {
  const { users, customers } = found;
  if (users.length + customers.length === 0) {
    const asked = found.stripe_asked
      ? "No account here and nothing at Stripe matches."
      : "No account here matches. Stripe was not asked, because no key is configured.";
    return notice(
      "info",
      "No user found",
      h("p", null, asked),
      !text.includes("@") && h("p", null, link(`#/users/${encodeURIComponent(text)}`, `Open ${text} anyway`)),
    );
  }
  return card(
    "Found",
    users.length > 0 &&
      table(
        "Users",
        [
          { title: "User", of: (user) => userLink(user.user_id) },
          { title: "Because", of: (user) => user.because },
        ],
        users,
      ),
    customers.length > 0 && [
      h("h3", null, "Customers without a user"),
      table(
        "Customers without a user",
        [
          { title: "Customer", of: (customer) => code(customer.id) },
          {
            title: "Because",
            of: (customer) =>
              customer.because +
              (customer.events.length ? `; ${customer.events.length} events wait for it` : ""),
          },
          {
            title: "",
            of: (customer) =>
              changeButton("Link to a user", () => linkCustomer({ customer: customer.id }), {
                class: "quiet",
              }),
          },
        ],
        customers,
      ),
    ],
  );
}

async function userView({ id }) {
  const checked = await get(`/admin/stripe/check-user/${encodeURIComponent(id)}`);
  const { account } = checked;
  const head =
    account &&
    h(
      "section",
      { class: "card summary", "aria-label": "Account" },
      h(
        "dl",
        { class: "tiles" },
        [
          ["Tier", account.tier],
          ["Credits", number(account.credits)],
          account.held > 0 && ["Available", number(account.available)],
          account.next_grant_at && ["Next credits", when(account.next_grant_at)],
          [
            "Access until",
            account.access_until ? when(account.access_until) : account.subscriptions.length ? "open" : "–",
          ],
          [
            "Customer",
            account.customers.length
              ? account.customers.map((customer) =>
                  h("div", null, code(customer.id), customer.deleted_at && " (deleted)"),
                )
              : "none linked",
          ],
        ]
          .filter(Boolean)
          .map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))),
      ),
    );
  return {
    title: id,
    back: ["#/users", "Users"],
    body: [
      verdictCard(checked),
      account && paymentActionNotice(account),
      head,
      checked.open.length > 0 && openCard(checked),
      differencesCard(checked),
      account && becauseCard(checked),
      account && balanceCard(checked),
      account && subscriptionsCard(checked),
      account && productsCard(account),
      account && featuresCard(account),
      account && lotsCard(account),
      account && holdsCard(account),
      account && ledgerCard(checked),
      timelineCard(checked),
      fixCard(checked),
    ],
  };
}

/** The payment that waits for the customer. The address comes from Stripe, and only https is linked. */
function paymentActionNotice({ payment_action: action }) {
  if (!action) return null;
  const url = action.hosted_invoice_url;
  return notice(
    "warn",
    "A payment waits for the customer",
    h(
      "p",
      null,
      "The bank asks the customer to confirm the payment of ",
      code(action.invoice),
      ", since ",
      when(action.at),
      ".",
    ),
    url?.startsWith("https://")
      ? h(
          "p",
          null,
          h(
            "a",
            { href: url, rel: "noreferrer noopener", target: "_blank" },
            "Open the invoice's page at Stripe",
          ),
          ". The customer confirms it there.",
        )
      : url && h("p", null, code(url)),
  );
}

const VERDICTS = {
  in_order: ["ok", "In order"],
  differs: ["bad", "Something is missing here"],
  open_events: ["warn", "Events wait"],
  suggestion: ["warn", "A customer to link"],
  unknown_user: ["warn", "No account"],
  person: ["warn", "An operator must decide"],
  stripe_silent: ["warn", "Stripe did not answer"],
  not_linked: ["warn", "No customer is linked"],
  not_compared: ["info", "Not compared with Stripe"],
};

function verdictCard({ verdict, user_id: user, suggestions, account }) {
  const [tone, title] = VERDICTS[verdict.code] ?? ["info", "Checked"];
  const acts = [];
  if (verdict.act === "apply_stripe") acts.push(button("Apply Stripe's state", () => applyStripe(user)));
  if (verdict.act === "link_customer" && suggestions.length === 0)
    acts.push(button("Link a customer", () => linkCustomer({ user, create: !account })));
  const suggested = suggestions.map((suggestion) =>
    h(
      "li",
      null,
      h("p", null, suggestion.text),
      changeButton(
        `Link ${suggestion.target}`,
        () => linkCustomer({ user, customer: suggestion.target, create: !account }),
        { class: "quiet" },
      ),
    ),
  );
  return notice(
    tone,
    title,
    h("p", null, verdict.text),
    suggested.length > 0 && h("ul", { class: "plain" }, suggested),
    mayChange() && acts.length > 0 && h("p", { class: "row" }, acts),
  );
}

function openCard({ open }) {
  return card(
    `Waiting or failed (${open.length})`,
    open.map((event) =>
      h(
        "div",
        { class: "item" },
        h(
          "p",
          { class: "row" },
          h("strong", null, event.type),
          pill(event.status),
          event.reason?.replaceAll("_", " "),
          when(event.received_at, true),
        ),
        h("p", null, event.advice.text),
        h("p", { class: "row" }, adviceButton(event.advice, event.id), eventLink(event.id)),
      ),
    ),
  );
}

const words = (facts) =>
  Object.entries(facts ?? {})
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`)
    .join(", ") || "–";

function differencesCard({ differences, stripe, user_id: user }) {
  if (!stripe.configured) {
    return card(
      "Stripe",
      empty(
        "STRIPE_SECRET_KEY is not set, so Stripe is not asked. A restricted key that may read is enough.",
      ),
    );
  }
  const repairable = differences.filter((difference) => difference.repairable).length;
  const columns = [
    {
      title: "What",
      of: (difference) => [
        pill(difference.class, difference.repairable ? "bad" : "warn"),
        h("br"),
        code(difference.object),
      ],
    },
    { title: "Here", of: (difference) => words(difference.before) },
    { title: "At Stripe", of: (difference) => words(difference.after) },
    {
      title: "Repair",
      of: (difference) =>
        difference.repairable ? "apply Stripe's state" : `by an operator: ${difference.why}`,
    },
  ];
  return card(
    "What differs from Stripe",
    stripe.error && notice("warn", "Stripe did not answer everything", h("p", null, stripe.error)),
    differences.length === 0
      ? empty(stripe.customers.length ? "Nothing." : "Nothing could be compared: no customer is linked.")
      : table("Differences", columns, differences),
    repairable > 0 &&
      h(
        "p",
        { class: "row" },
        changeButton("Apply Stripe's state", () => applyStripe(user)),
      ),
    stripe.subscriptions.length + stripe.payments.length > 0 &&
      h("details", null, h("summary", null, "What Stripe has"), stripeTables(stripe)),
  );
}

function stripeTables({ subscriptions, payments, customers }) {
  const money = (payment) =>
    typeof payment.amount === "number"
      ? `${(payment.amount / 100).toFixed(2)} ${(payment.currency ?? "").toUpperCase()}`
      : "–";
  return [
    customers.some((customer) => customer.missing) &&
      notice(
        "warn",
        null,
        h(
          "p",
          null,
          "Stripe does not have a linked customer; it is of another mode or another Stripe account.",
        ),
      ),
    subscriptions.length > 0 &&
      table(
        "Subscriptions at Stripe",
        [
          { title: "Subscription", of: (one) => code(one.id) },
          { title: "Status", of: (one) => pill(one.status) },
          { title: "Price", of: (one) => code(one.price ?? "–") },
          { title: "Period", of: (one) => [when(one.period_start), " – ", when(one.period_end)] },
        ],
        subscriptions,
      ),
    payments.length > 0 &&
      table(
        "Payments at Stripe",
        [
          { title: "Payment", of: (one) => code(one.id) },
          {
            title: "For",
            of: (one) => (one.reason ?? one.object ?? "").replaceAll("_", " ").replaceAll(".", " "),
          },
          { title: "Amount", class: "number", of: money },
          { title: "Made", of: (one) => when(one.created) },
        ],
        payments,
      ),
  ];
}

/** Rules that explain why a user has less than expected. */
const UNEXPECTED = new Set(["not_paid", "void", "default_tier", "not_signed_up"]);

function becauseCard({ because }) {
  const columns = [
    { title: "Field", class: "prose", of: (one) => h("strong", { class: "field-name" }, one.field) },
    {
      title: "Value",
      of: (one) =>
        /^\d{4}-\d\d-\d\dT/.test(one.value)
          ? when(one.value)
          : UNEXPECTED.has(one.rule)
            ? pill(one.value, "warn")
            : one.value,
    },
    {
      title: "Because",
      class: "prose",
      of: (one) => [one.why, one.at && [" ", h("span", { class: "muted small" }, "(", when(one.at), ")")]],
    },
    {
      title: "Set by",
      class: "by",
      of: (one) => [
        one.event_id && eventLink(one.event_id),
        one.ledger_key && [one.event_id && h("br"), code(one.ledger_key)],
        !one.event_id && !one.ledger_key && h("span", { class: "muted" }, "a rule"),
      ],
    },
  ];
  return card("Why the account has these values", table("Each field and what set it", columns, because));
}

function subscriptionsCard({ account }) {
  if (account.subscriptions.length === 0 && account.orders.length === 0) return null;
  return card(
    "Subscriptions and orders",
    account.subscriptions.length > 0 &&
      table(
        "Subscriptions",
        [
          { title: "Subscription", of: (one) => code(one.id) },
          { title: "Status", of: (one) => pill(one.status) },
          { title: "Plan", of: (one) => one.plan ?? code(one.price ?? "–") },
          { title: "Period", of: (one) => [when(one.period_start), " – ", when(one.period_end)] },
          { title: "Credits", class: "number", of: (one) => number(one.credits) },
        ],
        account.subscriptions,
      ),
    account.orders.length > 0 &&
      table(
        "Orders",
        [
          { title: "Order", of: (one) => orderLink(one.id) },
          { title: "Kind", of: (one) => `${one.mode} ${one.tier}` },
          { title: "Status", of: (one) => one.status },
        ],
        account.orders,
      ),
  );
}

function productsCard({ products }) {
  if (products.length === 0) return null;
  const amount = (one) => (one.amount === null ? "–" : `${number(one.amount)} ${one.currency} (minor units)`);
  return card(
    "Products",
    table(
      "Products",
      [
        { title: "Product", of: (one) => one.name },
        { title: "Status", of: (one) => pill(one.status) },
        { title: "Paid", of: amount },
        { title: "Bought", of: (one) => [one.purchase_type.replace("_", " "), h("br"), when(one.at)] },
        { title: "At Stripe", of: (one) => code(one.payment_intent ?? one.subscription ?? one.price ?? "–") },
      ],
      products,
    ),
  );
}

function featuresCard({ features }) {
  if (features.length === 0) return null;
  const value = (one) => (one.value === true ? "on" : one.value === false ? "off" : String(one.value));
  return card(
    "Features",
    table(
      "Features",
      [
        { title: "Feature", of: (one) => one.name },
        { title: "Value", of: value },
        { title: "Because of", of: (one) => one.because },
        { title: "Until", of: (one) => (one.until ? when(one.until) : "–") },
      ],
      features,
    ),
  );
}

function lotsCard({ lots, next_grant_at: next }) {
  const living = lots.filter((lot) => lot.left > 0);
  if (living.length === 0 && !next) return null;
  return card(
    "Credits by grant",
    next && h("p", null, ["The next credits fall due ", when(next), "."]),
    table(
      "Credits by grant",
      [
        { title: "Granted by", of: (lot) => code(lot.key ?? lot.bucket) },
        { title: "Left", class: "number", of: (lot) => `${number(lot.left)} of ${number(lot.granted)}` },
        { title: "Since", of: (lot) => (lot.since ? when(lot.since) : "–") },
        { title: "Until", of: (lot) => (lot.until ? when(lot.until) : "no end") },
      ],
      living,
    ),
  );
}

function holdsCard({ holds, held, available }) {
  if (holds.length === 0) return null;
  return card(
    "Open holds",
    h("p", null, `${number(held)} credits are held for jobs that run; ${number(available)} are available.`),
    table(
      "Open holds",
      [
        { title: "Hold", of: (one) => code(one.hold) },
        { title: "Credits", class: "number", of: (one) => number(one.amount) },
        { title: "Ends", of: (one) => when(one.expires_at) },
      ],
      holds,
    ),
  );
}

const LEDGER_COLUMNS = [
  { title: "When", of: (entry) => when(entry.at) },
  {
    title: "What",
    of: (entry) => [h("strong", null, entry.kind.replaceAll("_", " ")), h("br"), code(entry.key)],
  },
  {
    title: "Change",
    class: "number",
    of: (entry) =>
      h(
        "span",
        { class: entry.delta < 0 ? "minus" : entry.delta > 0 ? "plus" : "muted" },
        `${entry.delta > 0 ? "+" : ""}${number(entry.delta)}`,
      ),
  },
  { title: "Balance", class: "number", of: (entry) => number(entry.balance) },
  {
    title: "By",
    of: (entry) => [
      entry.event_id ? eventLink(entry.event_id) : entry.cause,
      entry.reason && h("p", { class: "small muted" }, entry.reason),
      entry.shortfall > 0 &&
        h("p", { class: "small muted" }, `${number(entry.shortfall)} could not be taken`),
    ],
  },
];

function ledgerCard({ ledger, user_id: user }) {
  const more = async (next) => {
    const page = await get(`/admin/stripe/check-user/${encodeURIComponent(user)}/ledger${query({ next })}`);
    return { items: page.entries, next: page.next };
  };
  const draw = (entries) =>
    entries.length === 0
      ? empty("The ledger is empty; nothing was granted yet.")
      : table("Ledger, newest first", LEDGER_COLUMNS, entries);
  return card("Ledger", paged(ledger.entries, ledger.next, more, draw));
}

function timelineCard({ events }) {
  if (events.length === 0) return card("Events of this user", empty("No event names this user."));
  return card(
    "Events of this user",
    h(
      "ol",
      { class: "timeline" },
      events.map((event) =>
        h(
          "li",
          { "data-tone": TONES[event.status] },
          h(
            "p",
            { class: "row" },
            when(event.created),
            h("strong", null, event.type),
            event.status !== "processed" && pill(event.status),
            eventLink(event.id),
          ),
        ),
      ),
    ),
  );
}

function fixCard({ user_id: user, account }) {
  if (!mayChange()) return null;
  return card(
    "Change by hand",
    h("p", { class: "muted" }, "Every change needs a reason and is written to the audit before it is made."),
    h(
      "p",
      { class: "row" },
      button("Link a customer", () => linkCustomer({ user, create: !account }), { class: "quiet" }),
      button("Link a subscription", () => linkSubscription({ user, create: !account }), { class: "quiet" }),
      account &&
        mayGrant() && [
          button("Grant credits", () => grant(user, account, "grant"), { class: "quiet" }),
          button("Revoke credits", () => grant(user, account, "revoke"), { class: "quiet" }),
        ],
    ),
  );
}

const fix = (user, body, key) => post(`/admin/stripe/fix-user/${encodeURIComponent(user)}`, body, key);

/** Waits until the events that were just sent are processed, then shows the user again. */
async function settled(user) {
  for (let tries = 0; tries < 8; tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, 700));
    const { open } = await get(`/admin/stripe/check-user/${encodeURIComponent(user)}`);
    if (open.length === 0) break;
  }
  const hash = `#/users/${encodeURIComponent(user)}`;
  if (location.hash === hash) render();
  else location.hash = hash;
}

async function applyStripe(user) {
  const { differences } = await get(`/admin/stripe/check-user/${encodeURIComponent(user)}`);
  const repairs = differences.filter((difference) => difference.repairable);
  const answer = await confirmed({
    title: `Apply Stripe's state to ${user}`,
    what:
      repairs.length === 0
        ? h("p", null, "Nothing differs now, so this changes nothing.")
        : [
            h("p", null, "The following is applied, by the same rules as an event of Stripe:"),
            h(
              "ul",
              null,
              repairs.map((repair) =>
                h(
                  "li",
                  null,
                  h("strong", null, repair.class.replaceAll("_", " ")),
                  ` ${repair.object}: ${words(repair.before)} → ${words(repair.after)}`,
                ),
              ),
            ),
          ],
    confirm: "Apply",
  });
  if (!answer) return;
  const { report } = await fix(user, { action: "apply_stripe", reason: answer.reason });
  toast(report.changed === 1 ? "1 thing was repaired." : `${report.changed} things were repaired.`);
  render();
}

/** Links a customer to a user. Asks for the one that is not given. */
async function linkCustomer({ user, customer, create }) {
  const input = h("input", {
    required: true,
    autocomplete: "off",
    spellcheck: "false",
    placeholder: user ? "cus_…" : "the app's id of the user",
  });
  const box = h("input", { type: "checkbox", class: "check" });
  const known = user ?? null;
  const answer = await confirmed({
    title: "Link a customer to a user",
    extra: {
      first: customer && user ? null : input,
      fields: [
        !(customer && user) && field(user ? "Stripe customer" : "User", input),
        create &&
          h(
            "div",
            { class: "field row" },
            Object.assign(box, { id: "create" }),
            h("label", { for: "create" }, `Create the account ${user}; the id is correct`),
          ),
      ],
      check: () =>
        (customer && user) || input.value.trim() ? null : user ? "Enter a customer." : "Enter a user.",
      value: () => ({ other: input.value.trim(), create: box.checked }),
    },
    what: [
      h(
        "p",
        null,
        customer && known
          ? `${customer} is linked to ${known}.`
          : known
            ? `The customer is linked to ${known}.`
            : `${customer} is linked to that user.`,
        " All events parked for the customer are applied at once, and later payments go to that account.",
      ),
    ],
    confirm: "Link",
  });
  if (!answer) return;
  const target = known ?? answer.other;
  const linked = await fix(target, {
    action: "link_customer",
    customer: customer ?? answer.other,
    create: answer.create,
    reason: answer.reason,
  });
  toast(
    linked.result === "already_linked"
      ? "It is already linked."
      : linked.freed.length === 0
        ? "Linked. No event waited for it."
        : `Linked. Events that are applied now: ${linked.freed.length}.`,
  );
  await settled(target);
}

async function linkSubscription({ user, create }) {
  const input = h("input", {
    required: true,
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "sub_…",
  });
  const box = h("input", { type: "checkbox", class: "check", id: "create" });
  const answer = await confirmed({
    title: `Link a subscription to ${user}`,
    extra: {
      first: input,
      fields: [
        field("Subscription", input),
        create &&
          h(
            "div",
            { class: "field row" },
            box,
            h("label", { for: "create" }, `Create the account ${user}; the id is correct`),
          ),
      ],
      check: () => (input.value.trim() ? null : "Enter a subscription."),
      value: () => ({ subscription: input.value.trim(), create: box.checked }),
    },
    what: h(
      "p",
      null,
      `Stripe names the subscription's customer, which is linked to ${user}. Then Stripe's state is applied.`,
    ),
    confirm: "Link",
  });
  if (!answer) return;
  await fix(user, {
    action: "link_subscription",
    subscription: answer.subscription,
    create: answer.create,
    reason: answer.reason,
  });
  toast("Linked. Stripe's state is applied.");
  await settled(user);
}

async function grant(user, account, action) {
  const max = session.me.max_grant;
  const input = h("input", { type: "number", min: 1, max, step: 1, required: true, inputmode: "numeric" });
  const what = h("p");
  const preview = () => {
    const credits = Number(input.value) || 0;
    const after = action === "grant" ? account.credits + credits : Math.max(0, account.credits - credits);
    const rest =
      action === "revoke" && credits > account.credits
        ? ` ${number(credits - account.credits)} of them are already spent and are recorded as shortfall.`
        : "";
    const balances = `${user} has ${number(account.credits)} credits and will have ${number(after)}.`;
    what.textContent = balances + rest;
  };
  input.addEventListener("input", preview);
  preview();
  const answer = await confirmed({
    title: action === "grant" ? `Grant credits to ${user}` : `Revoke credits of ${user}`,
    extra: {
      first: input,
      fields: field(
        "Credits",
        input,
        action === "grant"
          ? "Like the credits of a pack, they are spent last."
          : "Taken in the order in which credits are spent. The balance never goes below zero.",
      ),
      check: () => {
        if (!/^[1-9]\d*$/.test(input.value)) return "A whole number of credits, at least 1.";
        return max !== null && Number(input.value) > max ? `At most ${number(max)} credits at once.` : null;
      },
      value: () => ({ credits: Number(input.value) }),
    },
    what,
    confirm: action === "grant" ? "Grant" : "Revoke",
    danger: action === "revoke",
  });
  if (!answer) return;
  // One key per confirmation: a request that is sent twice makes one entry.
  const done = await fix(
    user,
    { action, credits: answer.credits, reason: answer.reason },
    crypto.randomUUID(),
  );
  toast(`${user} has ${number(done.balance)} credits now.`);
  render();
}
