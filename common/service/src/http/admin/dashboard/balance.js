// The curve of a user's balance over time, from the ledger, and a table with the same numbers.

/** Ledger entries that the curve shows. */
const CURVE_ENTRIES = 100;

function balanceCard(checked) {
  const place = h("div", null, busy());
  balanceEntries(checked)
    .then((entries) => place.replaceChildren(...nodes(curve(entries, checked.account))))
    .catch((error) => place.replaceChildren(notice("bad", null, h("p", null, error.message))));
  return card("Balance over time", place);
}

/** The newest entries, oldest first. */
async function balanceEntries({ ledger, user_id: user }) {
  if (!ledger.next) return ledger.entries.toReversed();
  const path = `/admin/stripe/check-user/${encodeURIComponent(user)}/ledger`;
  const page = await get(`${path}${query({ limit: CURVE_ENTRIES })}`);
  return page.entries.toReversed();
}

/**
 * The balance after each entry. An entry of an account on a test clock has the clock's time in `created`, and
 * what fell due by time has it in `at`. The order is the ledger's, so time never runs backwards.
 */
function balancePoints(entries, account) {
  let last = 0;
  const points = entries.map((entry) => {
    last = Math.max(last, Date.parse(entry.at), Date.parse(entry.created));
    return { time: last, balance: entry.balance, delta: entry.delta, why: entry.kind.replaceAll("_", " ") };
  });
  const booked = points.at(-1)?.balance ?? 0;
  const unbooked = account.credits - booked;
  const why = unbooked === 0 ? "now" : "due by time, and not booked yet";
  return [
    ...points,
    { time: Math.max(last, Date.now()), balance: account.credits, delta: unbooked, why, isNow: true },
  ];
}

/** The next moment at which only the clock changes the balance. */
function nextChange({ lots, next_grant_at: grant }, now) {
  const ends = lots
    .filter((lot) => lot.left > 0 && lot.until)
    .map((lot) => ({ at: lot.until, text: `${number(lot.left)} credits end` }));
  const all = grant ? [{ at: grant, text: "the next credits" }, ...ends] : ends;
  const ahead = all.filter((change) => Date.parse(change.at) > now);
  return ahead.sort((one, other) => Date.parse(one.at) - Date.parse(other.at))[0];
}

function curve(entries, account) {
  if (entries.length === 0) return empty("The ledger is empty; nothing was granted yet.");
  const points = balancePoints(entries, account);
  const now = points.at(-1);
  const next = nextChange(account, now.time);
  return [
    h("div", { class: "chart" }, curveDrawing(points, next)),
    next &&
      h(
        "p",
        { class: "small muted" },
        `The next change by time alone: ${next.text}, `,
        when(next.at),
        ". The dashed line leads there.",
      ),
    h(
      "details",
      null,
      h("summary", null, "The same as a table"),
      table("Balance over time, newest first", CURVE_COLUMNS, points.toReversed()),
    ),
  ];
}

const CURVE_COLUMNS = [
  { title: "When", of: (point) => when(new Date(point.time).toISOString()) },
  { title: "Why", of: (point) => point.why },
  { title: "Change", class: "number", of: (point) => (point.delta > 0 ? "+" : "") + number(point.delta) },
  { title: "Balance", class: "number", of: (point) => number(point.balance) },
];

/** The last point of each moment: what is booked at one moment is one step of the curve. */
const moments = (points) => points.filter((point, place) => point.time !== points[place + 1]?.time);

function curveDrawing(all, next) {
  const points = moments(all);
  const [width, height, left, right, bottom, top] =
    innerWidth < 640 ? [380, 200, 52, 8, 24, 10] : [1000, 240, 62, 12, 26, 10];
  const now = points.at(-1);
  const first = all[0];
  const end = next ? Date.parse(next.at) : now.time;
  // Limit the time ahead, so that the past stays readable: the next change may be a year away.
  const shownEnd = Math.min(end, now.time + Math.max(now.time - first.time, 86_400_000) / 2);
  const span = Math.max(shownEnd - first.time, 1000);
  const before = first.balance - first.delta;
  const scale = niceTop(Math.max(before, ...points.map((point) => point.balance)));
  const x = (time) => left + ((width - left - right) * (time - first.time)) / span;
  const y = (value) => top + (height - top - bottom) * (1 - value / scale);
  const round = (value) => Math.round(value * 10) / 10;
  const steps = points.map((point) => `H${round(x(point.time))}V${round(y(point.balance))}`).join("");
  const line = `M${left} ${round(y(before))}${steps}`;
  const lines = [0, 0.5, 1].map((part) => {
    const value = Math.round(scale * part);
    return [
      svg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }),
      svg("text", { x: left - 8, y: y(value) + 4, class: "axis", "text-anchor": "end" }, number(value)),
    ];
  });
  const title = svg("title", { id: "curve-title" }, "Balance over time");
  const summary =
    `${all.length - 1} changes from ${LONG.format(first.time)} to ${LONG.format(now.time)}. ` +
    `The balance is ${number(now.balance)} credits. The table below has every change.`;
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": "curve-title curve-text" },
    title,
    svg("desc", { id: "curve-text" }, summary),
    lines,
    svg("path", { d: `${line}V${y(0)}H${left}Z`, class: "curve-area" }),
    svg("path", { d: line, class: "curve" }),
    next &&
      svg("path", {
        d: `M${round(x(now.time))} ${round(y(now.balance))}H${round(x(shownEnd))}`,
        class: "curve ahead",
      }),
    points.map((point) =>
      svg(
        "circle",
        { cx: round(x(point.time)), cy: round(y(point.balance)), r: point.isNow ? 4 : 3, class: "curve-dot" },
        svg("title", null, `${LONG.format(point.time)}: ${number(point.balance)}, ${point.why}`),
      ),
    ),
    curveDates(first.time, first.time + span, x, height),
  );
}

/** Dates below the curve: at its start, in the middle and at its end. */
function curveDates(from, to, x, height) {
  const days = (to - from) / 86_400_000;
  const format = new Intl.DateTimeFormat(
    undefined,
    days > 300
      ? { month: "short", year: "numeric" }
      : days > 2
        ? { day: "numeric", month: "short" }
        : { hour: "2-digit", minute: "2-digit", ...(days < 0.02 && { second: "2-digit" }) },
  );
  const places = [
    [from, "start"],
    [(from + to) / 2, "middle"],
    [to, "end"],
  ];
  return places.map(([time, anchor]) =>
    svg("text", { x: x(time), y: height - 6, class: "axis", "text-anchor": anchor }, format.format(time)),
  );
}
