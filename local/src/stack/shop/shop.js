(() => {
  "use strict";
  const by = (id) => document.getElementById(id);
  const KEY = "tallyhook-shop-user";
  const number = new Intl.NumberFormat();
  let user = null, announced = "", timer = null;

  const say = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const make = (name, kind, ...children) => {
    const node = document.createElement(name);
    if (kind) node.className = kind;
    node.append(...children);
    return node;
  };
  const words = (text) => String(text ?? "").replaceAll("_", " ");

  const call = async (path, body) => {
    const headers = { "content-type": "application/json" };
    const options = body === undefined ? {} : { method: "POST", headers, body: JSON.stringify(body) };
    const url = "/local/shop/" + encodeURIComponent(user) + path;
    const answer = await fetch(url, { cache: "no-store", ...options });
    const json = await answer.json();
    if (answer.ok) return json;
    const error = new Error(json.message || "The stack does not answer.");
    error.body = json;
    throw error;
  };
  const fail = (error) => { say(by("trouble"), error ? error.message : ""); by("trouble").hidden = !error; };

  // Writes a figure, and highlights it when it changes.
  const figure = (id, text) => {
    const node = by(id);
    if (node.textContent === text) return;
    const fresh = node.textContent !== "";
    node.textContent = text;
    if (!fresh) return;
    const { classList } = node.parentElement;
    classList.remove("changed");
    void node.offsetWidth; // the browser computes the layout, so that the animation starts again
    classList.add("changed");
  };
  const feed = (id, entries, row) => {
    by(id).replaceChildren(...entries.map(row));
    by(id + "-none").hidden = entries.length > 0;
  };
  const sentRow = (sent) => {
    const link = make("a", "", sent.type);
    link.href = "/admin#/events/" + encodeURIComponent(sent.event);
    const row = make("li", "", make("span", "grow", link));
    if (sent.again) {
      const pill = make("span", "pill", "again");
      pill.dataset.tone = "warn";
      row.append(pill);
    }
    if (sent.status !== 200) row.append(make("span", "minus", "answered " + sent.status));
    return row;
  };
  const signed = (value) => (value > 0 ? "+" : "") + number.format(value);
  const color = (delta) => (delta < 0 ? "minus" : delta > 0 ? "plus" : "muted");
  const ledgerRow = (entry) => make("li", "",
    make("span", "delta " + color(entry.delta), signed(entry.delta)),
    make("span", "grow", words(entry.kind)),
    make("span", "muted", "balance " + number.format(entry.balance)));
  const notificationRow = (notification) => make("li", "", make("span", "grow", notification.type),
    make("span", "muted", notification.data.tier + ", " + number.format(notification.data.credits)));

  // What a yearly plan granted for this month, and when the next month begins.
  const date = (text, options) =>
    new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", ...options }).format(new Date(text));
  const showMonth = ({ account, yearly, date: clock }) => {
    const lots = yearly ? account.lots.filter((lot) => lot.granted > 0) : [];
    const lot = lots.find((one) => one.bucket.startsWith("si_"));
    by("month").hidden = !lot;
    if (!lot) return;
    const day = (text) => date(text, { day: "numeric", month: "long", year: "numeric" });
    const rollovers = lots.filter((one) => one.bucket.startsWith("rollover "));
    const carried = rollovers.reduce((sum, one) => sum + one.left, 0);
    const next = account.next_grant_at;
    say(by("month"), number.format(lot.granted) + " credits for " + date(lot.since, { month: "long" })
      + (carried ? ", and " + number.format(carried) + " carried over" : "")
      + (next ? ", next on " + day(next) : ", next with the renewal") + "."
      + (clock ? " The test clock shows " + day(clock) + "." : ""));
  };

  const setups = { pay: "not paid", wait_payment: "waiting for the payment", set_password: "no password yet",
    wait_provisioning: "being set up", go_to_dashboard: "done" };
  const show = (page) => {
    const account = page.account;
    by("account").hidden = by("acts").hidden = !account;
    say(by("enter"), account ? "Switch" : "Sign up");
    by("enter").classList.toggle("quiet", Boolean(account));
    document.querySelectorAll("[data-order]").forEach((button) => { button.disabled = !account; });
    if (!account) return;
    const plan = account.subscriptions.at(-1);
    figure("tier", account.tier);
    figure("credits", number.format(account.credits));
    figure("subscription", plan ? (plan.plan || "unknown plan") + ", " + words(plan.status) : "none");
    figure("setup", page.setup ? setups[page.setup.next_action] || "" : "nothing bought");
    const { signup, addon, subscriptions } = account.buckets;
    const ofPlans = Object.values(subscriptions).reduce((sum, credits) => sum + credits, 0);
    const orders = account.orders.map((one) => one.mode + " " + one.tier + " " + one.status).join(", ");
    const products = account.products.map((one) => one.name + " " + one.status).join(", ");
    say(by("buckets"), "From signing up " + number.format(signup)
      + ", plan " + number.format(ofPlans)
      + ", packs " + number.format(addon)
      + (orders ? ". Orders: " + orders : "") + (products ? ". Products: " + products : "") + ".");
    showMonth(page);
    feed("sent", page.sent, sentRow);
    feed("ledger", page.ledger, ledgerRow);
    feed("notifications", page.notifications, notificationRow);
    const noPassword = page.setup && page.setup.password_state === "not_sent";
    const can = { ...page.can, spend: true, password: noPassword };
    document.querySelectorAll("[data-act]").forEach((one) => { one.hidden = !can[one.dataset.act]; });
    say(by("refund-amount"), can.refund || "");
    const session = page.setup && encodeURIComponent(page.setup.session_id);
    if (session) by("status-page").href = "/portal/status?session_id=" + session;
    const summary = user + " has tier " + account.tier + " and " + account.credits + " credits";
    if (summary !== announced) say(by("live"), summary);
    announced = summary;
  };

  // Refreshes often while messages are being processed, and every four seconds otherwise: events may also
  // come from a terminal.
  const refresh = async () => {
    clearTimeout(timer);
    let pause = 4000;
    try {
      const page = await call("");
      show(page);
      if (page.account && !page.at_rest) pause = 250;
      if (by("trouble").dataset.lost) { delete by("trouble").dataset.lost; fail(); }
    } catch (error) {
      by("trouble").dataset.lost = "yes";
      fail(error.body ? error : new Error("The stack does not answer. Is it still running?"));
    }
    timer = setTimeout(() => (document.hidden ? (timer = setTimeout(refresh, 4000)) : refresh()), pause);
  };
  const run = async (button, action) => {
    if (button.disabled) return;
    button.disabled = true;
    fail();
    try {
      await action();
    } catch (error) {
      fail(error);
    }
    button.disabled = false;
    await refresh();
  };

  by("who").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = by("user").value.trim();
    if (!name) return;
    const same = name === user;
    user = name;
    announced = "";
    run(by("enter"), async () => {
      await call("/sign-up", {});
      localStorage.setItem(KEY, user);
      if (!same) ["tier", "credits", "subscription", "setup"].forEach((id) => { by(id).textContent = ""; });
    });
  });
  const onClick = (selector, action) => document.querySelectorAll(selector).forEach((button) =>
    button.addEventListener("click", () => run(button, () => action(button))));
  onClick("[data-order]", async (button) => {
    try {
      location.assign((await call("/buy", JSON.parse(button.dataset.order))).url);
    } catch (error) {
      // A second subscription is not sold: the customer changes the plan in the billing portal.
      if (!error.body || !error.body.portal_url) throw error;
      location.assign(error.body.portal_url);
    }
  });
  onClick("[data-act]", async ({ dataset: { act } }) => {
    const answer = await call("/" + act, act === "spend" ? { amount: 100 } : {});
    if (answer.url) location.assign(answer.url);
  });
  addEventListener("pageshow", (event) => { if (event.persisted) refresh(); });

  user = localStorage.getItem(KEY) || by("user").value;
  by("user").value = user;
  refresh();
})();
