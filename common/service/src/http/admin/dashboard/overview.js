// The overview: health, the chart of events, the queues.

const RANGES = { "24h": ["24 hours", "1h", 1], "7d": ["7 days", "6h", 7], "30d": ["30 days", "1d", 30] };
const REMEDIES = {
  parked: ["#/parked", "See what is parked"],
  failed: ["#/parked", "See what failed"],
  success_rate: ["#/parked", "Group by reason"],
  missing: ["#/reconcile", "Reconcile"],
  orphaned: ["#/reconcile", "Reconcile"],
  not_reconciled: ["#/reconcile", "Reconcile"],
  plans_without_invoice: ["#/reconcile", "Reconcile"],
};

function scoreRing(score) {
  const length = 2 * Math.PI * 42;
  const tone = score >= 90 ? "ok" : score >= 80 ? "warn" : "bad";
  const ring = svg(
    "svg",
    {
      viewBox: "0 0 100 100",
      class: `ring ${tone}`,
      role: "img",
      "aria-label": `Health score ${score} of 100`,
    },
    svg("circle", { cx: 50, cy: 50, r: 42, class: "track" }),
    svg("circle", {
      cx: 50,
      cy: 50,
      r: 42,
      class: "value",
      "stroke-dasharray": `${(length * score) / 100} ${length}`,
      transform: "rotate(-90 50 50)",
    }),
    svg("text", { x: 50, y: 58, "text-anchor": "middle" }, score),
  );
  const word = { ok: "Healthy", warn: "Check the deductions", bad: "Needs attention now" }[tone];
  return [ring, h("p", { class: "score-word" }, word)];
}

function healthCard(health) {
  const { counts, deductions } = health;
  const rate = health.success_rate === null ? "–" : `${(health.success_rate * 100).toFixed(1)} %`;
  // A queue that could not be counted has null.
  const known = (count) => (count === null ? "–" : number(count));
  const depth = (queue) => (queue.waiting === null ? null : queue.waiting + queue.in_flight);
  const waiting = counts.queues.map(depth).reduce((a, b) => (a === null || b === null ? null : a + b), 0);
  const tiles = [
    ["Success, last day", rate],
    ["Processed, last day", number(counts.processed)],
    ["Parked", number(counts.parked)],
    ["Failed", number(counts.failed)],
    ["In queues", known(waiting)],
    ["Dead letters", known(counts.dead_letters)],
  ];
  const list = deductions.map((deduction) => {
    const [hash, text] = REMEDIES[deduction.code] ?? [];
    const may = hash && (hash !== "#/reconcile" || mayChange());
    return h(
      "li",
      null,
      h("span", { class: "points" }, `−${deduction.points}`),
      h(
        "div",
        null,
        h("strong", null, deduction.reason),
        h("p", { class: "muted" }, sentence(deduction.advice), may && [" ", link(hash, text)]),
      ),
    );
  });
  return card(
    "Health",
    h(
      "div",
      { class: "health" },
      h("div", { class: "score" }, scoreRing(health.score)),
      h(
        "div",
        { class: "grow" },
        list.length === 0
          ? empty("No deductions: every received event was processed.")
          : h("ul", { class: "deductions" }, list),
      ),
    ),
    h(
      "dl",
      { class: "tiles" },
      tiles.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))),
    ),
  );
}

function queuesCard(counts) {
  const busyQueues = counts.queues.filter(
    (queue) => queue.waiting === null || queue.waiting + queue.in_flight > 0,
  );
  const known = (count) => (count === null ? "unknown" : number(count));
  const columns = [
    { title: "Queue", of: (queue) => queue.queue },
    { title: "Waiting", class: "number", of: (queue) => known(queue.waiting) },
    { title: "In flight or delayed", class: "number", of: (queue) => known(queue.in_flight) },
  ];
  return card(
    "Queues",
    busyQueues.length === 0
      ? empty(`All ${counts.queues.length} queues are empty.`)
      : table("Queues that hold messages", columns, busyQueues),
  );
}

async function chartCard(range) {
  const [, step, days] = RANGES[range];
  const now = Date.now();
  const size = { "1h": 3600e3, "6h": 6 * 3600e3, "1d": 86400e3 }[step];
  const to = new Date(Math.ceil(now / size) * size);
  const from = new Date(to.getTime() - days * 86400e3);
  const iso = (date) => date.toISOString().replace(".000", "");
  const counts = await get(`/admin/stripe/event-counts${query({ from: iso(from), to: iso(to), step })}`);
  const choice = h(
    "div",
    { class: "row choice", role: "group", "aria-label": "Time shown" },
    Object.entries(RANGES).map(([name, [title]]) =>
      h("a", { href: `#/?range=${name}`, "aria-current": name === range ? "true" : null }, title),
    ),
  );
  return card(
    "Events",
    choice,
    chart(counts),
    !counts.complete &&
      notice(
        "warn",
        null,
        h("p", null, "There are more events than were counted; the numbers are lower bounds."),
      ),
  );
}

async function overviewView({ parameters }) {
  const range = RANGES[parameters.range] ? parameters.range : "24h";
  const [health, events] = await Promise.all([get("/admin/stripe/subscription-health"), chartCard(range)]);
  const subtitle = `Signed in as ${session.me.name}, ${session.me.role}. ${roleText(session.me)}`;
  return { title: "Overview", subtitle, body: [healthCard(health), events, queuesCard(health.counts)] };
}
