(() => {
  "use strict";
  const by = (id) => document.getElementById(id);
  const page = by("status");
  const { session, poll, patience } = page.dataset;
  const every = Number(poll),
    until = Date.now() + Number(patience);
  const refresh = by("refresh"),
    go = by("continue"),
    banner = by("banner");
  let timer = null,
    last = "",
    over = false,
    busy = false;

  // For each state in the answer: how the step looks and the text beside it.
  const steps = {
    payment: {
      unpaid: ["bad", "Not paid"],
      confirming: ["busy", "Confirming"],
      paid: ["done", "Paid"],
      failed: ["bad", "Failed"],
    },
    provisioning: {
      not_started: ["waiting", "Waiting"],
      queued: ["busy", "In line"],
      running: ["busy", "Being set up"],
      completed: ["done", "Ready"],
      failed: ["bad", "Needs our help"],
    },
    password: { not_sent: ["waiting", "Not set yet"], set: ["done", "Set"] },
  };
  const actions = {
    pay: ["This order is not paid", "You were not charged. You can go back and try again.", "Try again"],
    wait_payment: [
      "Confirming your payment",
      "This usually takes a few seconds. You can leave this page open.",
    ],
    wait_provisioning: ["Payment received", "Thank you. We are setting up your account."],
    set_password: ["Your account is ready", "The last step is to set your password.", "Set your password"],
    go_to_dashboard: ["All done", "Thank you. Everything is ready.", "Go to your dashboard"],
  };

  const say = (node, text) => {
    if (node.textContent !== text) node.textContent = text;
  };
  const step = (name, [state, words]) => {
    const node = by("step-" + name);
    node.dataset.state = state;
    say(node.querySelector(".state"), words);
  };
  const alarm = (title, text) => {
    say(by("banner-title"), title);
    say(by("banner-text"), text);
    banner.hidden = false;
  };

  const show = (status) => {
    for (const name of Object.keys(steps)) {
      const known = steps[name][status[name + "_state"]];
      if (known) step(name, known);
    }
    if (status.next_action === "set_password") step("password", ["next", "To do"]);
    if (status.reference) {
      const support = by("support");
      say(by("reference"), status.reference);
      if (support) {
        const subject = encodeURIComponent("Order " + status.reference);
        support.href = `mailto:${support.textContent}?subject=${subject}`;
      }
    }
    const [headline, detail, label] = actions[status.next_action] || actions.wait_payment;
    say(by("headline"), headline);
    const mailed = status.welcome_email_sent && status.next_action === "set_password";
    say(by("detail"), mailed ? "We sent you an e-mail with the next step: set your password." : detail);
    if (status.payment_state === "paid") page.dataset.celebrates = "";
    last = status.next_action;
    over = last === "go_to_dashboard" || status.payment_state === "failed";
    if (go) {
      go.hidden = !label;
      if (label) say(go, label);
    }
    refresh.classList.toggle("quiet", Boolean(label && go));
    if (status.provisioning_state === "failed") {
      alarm(
        "We could not finish your account yet",
        "Your payment is safe and we are looking into it. There is no need to pay again.",
      );
    } else if (!over && last !== "set_password" && Date.now() >= until) {
      late();
    } else {
      banner.hidden = true;
    }
  };
  const late = () =>
    alarm(
      "This takes longer than usual",
      last === "wait_provisioning"
        ? "Your payment is confirmed, but your account is not ready yet. There is no need to pay again."
        : "Your payment is not confirmed yet. If you have paid, there is no need to pay again.",
    );

  const ask = async () => {
    if (busy) return;
    busy = true;
    clearTimeout(timer);
    let note = "Last checked at ";
    try {
      const answer = await fetch("/portal/setup-status?session_id=" + encodeURIComponent(session), {
        cache: "no-store",
      });
      const body = await answer.json();
      if (answer.ok) show(body);
      else if (answer.status === 404) {
        over = true;
        say(by("headline"), "We do not know this order");
        say(by("detail"), body.message || "");
        step("payment", ["bad", "Not found"]);
        alarm("We do not know this order", "Please check the address of this page.");
      } else note = "The server could not answer at ";
    } catch {
      note = "No connection at ";
    }
    say(by("checked"), note + new Date().toLocaleTimeString());
    busy = false;
    if (over) return;
    if (Date.now() < until) timer = setTimeout(ask, every);
    else if (banner.hidden && last !== "set_password") late();
  };
  refresh.addEventListener("click", ask);
  ask();
})();
