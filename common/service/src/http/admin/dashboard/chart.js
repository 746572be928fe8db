// The chart of outcomes over time: stacked bars, and a table with the same numbers.

const OUTCOMES = ["processed", "ignored", "parked", "failed", "dismissed"];

function niceTop(most) {
  const size = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
  return [1, 2, 5, 10].map((step) => step * size).find((top) => top >= most && top >= 4) ?? Math.max(4, most);
}

function chart(counts) {
  const [width, height, left, bottom, top] =
    innerWidth < 640 ? [380, 200, 34, 24, 8] : [1000, 240, 44, 26, 8];
  const most = Math.max(
    0,
    ...counts.steps.map((step) => OUTCOMES.reduce((sum, outcome) => sum + step[outcome], 0)),
  );
  const scale = niceTop(most);
  const y = (value) => top + (height - top - bottom) * (1 - value / scale);
  const slot = (width - left) / counts.steps.length;
  const days = counts.step_seconds >= 86400;
  const format = new Intl.DateTimeFormat(
    undefined,
    days ? { day: "numeric", month: "short" } : { hour: "2-digit", minute: "2-digit" },
  );
  const lines = [0, 0.5, 1].map((part) => {
    const value = Math.round(scale * part);
    return [
      svg("line", { x1: left, x2: width, y1: y(value), y2: y(value), class: "grid" }),
      svg("text", { x: left - 8, y: y(value) + 4, class: "axis", "text-anchor": "end" }, number(value)),
    ];
  });
  const every = Math.ceil(counts.steps.length / (innerWidth < 640 ? 4 : 6));
  const bars = counts.steps.map((step, place) => {
    const x = left + place * slot;
    let base = 0;
    const parts = OUTCOMES.filter((outcome) => step[outcome] > 0).map((outcome) => {
      const from = base;
      base += step[outcome];
      return svg("rect", {
        x: x + slot * 0.12,
        width: Math.max(slot * 0.76, 1),
        y: y(base),
        height: Math.max(y(from) - y(base), 1),
        rx: 1.5,
        class: `bar ${outcome}`,
      });
    });
    const label =
      place % every === 0
        ? svg(
            "text",
            { x: x + slot / 2, y: height - 6, class: "axis", "text-anchor": "middle" },
            format.format(new Date(step.at)),
          )
        : null;
    const summaryOfStep =
      OUTCOMES.filter((outcome) => step[outcome] > 0)
        .map((outcome) => `${step[outcome]} ${outcome}`)
        .join(", ") || "nothing";
    const title = svg("title", null, `${LONG.format(new Date(step.at))}: ${summaryOfStep}`);
    return svg(
      "g",
      null,
      title,
      svg("rect", { x, width: slot, y: top, height: height - top - bottom, class: "touch" }),
      parts,
      label,
    );
  });
  const summary = OUTCOMES.map((outcome) => `${number(counts.totals[outcome] ?? 0)} ${outcome}`).join(", ");
  const drawing = svg(
    "svg",
    {
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `Events received: ${summary}. The table below has every step.`,
    },
    lines,
    bars,
  );
  const legend = h(
    "ul",
    { class: "legend" },
    OUTCOMES.map((outcome) =>
      h(
        "li",
        null,
        h("span", { class: `key ${outcome}`, "aria-hidden": "true" }),
        `${outcome} ${number(counts.totals[outcome] ?? 0)}`,
      ),
    ),
  );
  return [h("div", { class: "chart" }, drawing), legend, chartTable(counts)];
}

function chartTable(counts) {
  const some = counts.steps.filter((step) => OUTCOMES.some((outcome) => step[outcome] > 0)).reverse();
  const end = (step) => new Date(new Date(step.at).getTime() + counts.step_seconds * 1000).toISOString();
  const columns = [
    {
      title: "From",
      of: (step) => link(`#/events${query({ from: step.at, to: end(step) })}`, when(step.at)),
    },
    ...OUTCOMES.map((outcome) => ({ title: outcome, class: "number", of: (step) => number(step[outcome]) })),
  ];
  return h(
    "details",
    null,
    h("summary", null, "The same as a table"),
    some.length === 0 ? empty("No event in this time.") : table("Events by outcome and time", columns, some),
  );
}
