(() => {
  "use strict";
  const by = (id) => document.getElementById(id);
  const KEY = "tallyhook-shop-user";
  const number = new Intl.NumberFormat();
  let user = null, last = "", asking = null;

  const say = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const make = (name, kind, ...children) => {
    const node = document.createElement(name);
    if (kind) node.className = kind;
    node.append(...children);
    return node;
  };
  const words = (text) => String(text ?? "").replaceAll("_", " ");

  const call = async (path, body) => {
    const wish = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch("/local/shop/" + encodeURIComponent(user) + path, { cache: "no-store", ...wish });
    const told = await answer.json();
    if (answer.ok) return told;
    const error = new Error(told.message || "The stack does not answer.");
    error.told = told;
    throw error;
  };
  const fail = (error) => { say(by("trouble"), error ? error.message : ""); by("trouble").hidden = !error; };

  // A figure that has changed is seen to.
  const figure = (id, text) => {
    const node = by(id);
    if (node.textContent === text) return;
    const fresh = node.textContent !== "";
    node.textContent = text;
    if (fresh) { node.parentElement.classList.remove("changed"); void node.offsetWidth; node.parentElement.classList.add("changed"); }
  };
  const feed = (id, entries, row) => {
    by(id).replaceChildren(...entries.map(row));
    by(id + "-none").hidden = entries.length > 0;
  };
  const sentRow = (sent) => {
    const link = make("a", "", sent.type);
    link.href = "/admin#/events/" + encodeURIComponent(sent.event);
    const row = make("li", "", make("span", "grow", link));
    if (sent.again) { const pill = make("span", "pill", "again"); pill.dataset.tone = "warn"; row.append(pill); }
    if (sent.status !== 200) row.append(make("span", "minus", "answered " + sent.status));
    return row;
  };
  const signed = (value) => (value > 0 ? "+" : "") + number.format(value);
  const ledgerRow = (entry) => make("li", "",
    make("span", "delta " + (entry.delta < 0 ? "minus" : entry.delta > 0 ? "plus" : "muted"), signed(entry.delta)),
    make("span", "grow", words(entry.kind)), make("span", "muted", "balance " + number.format(entry.balance)));
  const toldRow = (told) => make("li", "", make("span", "grow", told.type),
    make("span", "muted", told.data.tier + ", " + number.format(told.data.credits)));

  const setups = { pay: "to be paid", wait_payment: "waits for the payment", wait_provisioning: "being set up", set_password: "password to be set",
    go_to_dashboard: "done" };
  const show = (seen) => {
    const account = seen.account;
    by("account").hidden = by("acts").hidden = !account;
    say(by("enter"), account ? "Switch" : "Sign up");
    by("enter").classList.toggle("quiet", Boolean(account));
    document.querySelectorAll("[data-wish]").forEach((button) => { button.disabled = !account; });
    if (!account) return;
    const plan = account.subscriptions.at(-1);
    figure("tier", account.tier);
    figure("credits", number.format(account.credits));
    figure("subscription", plan ? (plan.plan || "unknown plan") + ", " + words(plan.status) : "none");
    figure("setup", seen.setup ? setups[seen.setup.next_action] || "" : "nothing bought");
    const { signup, addon, subscriptions } = account.buckets;
    const ofPlans = Object.values(subscriptions).reduce((sum, credits) => sum + credits, 0);
    const orders = account.orders.map((order) => order.mode + " " + order.tier + " " + order.status).join(", ");
    say(by("buckets"), "From signing up " + number.format(signup) + ", plan " + number.format(ofPlans) + ", packs " + number.format(addon)
      + (orders ? ". Orders: " + orders : "") + ".");
    feed("sent", seen.sent, sentRow);
    feed("ledger", seen.ledger, ledgerRow);
    feed("told", seen.told, toldRow);
    const can = { ...seen.can, spend: true, password: seen.setup && seen.setup.password_state === "not_sent" };
    document.querySelectorAll("[data-act]").forEach((button) => { button.hidden = !can[button.dataset.act]; });
    say(by("refund-amount"), can.refund || "");
    if (seen.setup) by("status-page").href = "/portal/status?session_id=" + encodeURIComponent(seen.setup.session_id);
    const news = user + " has tier " + account.tier + " and " + account.credits + " credits";
    if (news !== last) say(by("live"), news);
    last = news;
  };

  // Asks until nothing is under way, and then now and then: events may come from a terminal, too.
  const look = async () => {
    clearTimeout(asking);
    let pause = 4000;
    try {
      const seen = await call("");
      show(seen);
      if (seen.account && !seen.at_rest) pause = 250;
      if (by("trouble").dataset.lost) { delete by("trouble").dataset.lost; fail(); }
    } catch (error) {
      by("trouble").dataset.lost = "yes";
      fail(error.told ? error : new Error("The stack does not answer. Is it still running?"));
    }
    asking = setTimeout(() => (document.hidden ? (asking = setTimeout(look, 4000)) : look()), pause);
  };
  const doing = async (button, act) => {
    if (button.disabled) return;
    button.disabled = true;
    fail();
    try {
      await act();
    } catch (error) {
      fail(error);
    }
    button.disabled = false;
    await look();
  };

  by("who").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = by("user").value.trim();
    if (!name) return;
    const same = name === user;
    user = name;
    last = "";
    doing(by("enter"), async () => {
      await call("/sign-up", {});
      localStorage.setItem(KEY, user);
      if (!same) ["tier", "credits", "subscription", "setup"].forEach((id) => { by(id).textContent = ""; });
    });
  });
  document.querySelectorAll("[data-wish]").forEach((button) => button.addEventListener("click", () => doing(button, async () => {
    try {
      location.assign((await call("/buy", JSON.parse(button.dataset.wish))).url);
    } catch (error) {
      // A second subscription is not sold; plans are changed in the billing portal.
      if (!error.told || !error.told.portal_url) throw error;
      location.assign(error.told.portal_url);
    }
  })));
  document.querySelectorAll("[data-act]").forEach((button) => button.addEventListener("click", () => doing(button, () =>
    call("/" + button.dataset.act, button.dataset.act === "spend" ? { amount: 100 } : {}))));
  addEventListener("pageshow", (event) => { if (event.persisted) look(); });

  user = localStorage.getItem(KEY) || by("user").value;
  by("user").value = user;
  look();
})();
