// The catalog: the current one, its versions, and a form to check and apply a new one.

/** The maximum number of cells of a comparison of two texts. */
const MAX_CELLS = 4e6;
/** Unchanged lines that are shown around a change. */
const CONTEXT = 3;

const toml = (text, label) => h("pre", { tabindex: "0", "aria-label": label }, text);

const catalogFacts = (stored) =>
  facts([
    ["Version", number(stored.version)],
    ["Digest", code(stored.digest)],
    ["Applied", when(stored.applied_at)],
    ["By", stored.actor],
    ["Why", stored.reason],
  ]);

const VERSION_COLUMNS = [
  { title: "Version", of: (stored) => link(`#/catalog/${stored.version}`, number(stored.version)) },
  { title: "Applied", of: (stored) => when(stored.applied_at) },
  { title: "By", of: (stored) => stored.actor },
  { title: "Why", of: (stored) => stored.reason },
  { title: "Digest", of: (stored) => code(stored.digest) },
];

async function catalogView() {
  const [current, history] = await Promise.all([storedCatalog(), get("/admin/catalog/history")]);
  const more = async (next) => {
    const { versions, next: after } = await get(`/admin/catalog/history${query({ next })}`);
    return { items: versions, next: after };
  };
  const draw = (versions) =>
    versions.length === 0
      ? empty("No catalog was applied yet.")
      : table("Versions of the catalog, newest first", VERSION_COLUMNS, versions);
  return {
    title: "Catalog",
    body: [
      current
        ? card("Current catalog", catalogFacts(current), toml(current.toml, "The current catalog as TOML"))
        : notice("warn", "No catalog is stored", h("p", null, "Apply the first one.")),
      mayChange() && catalogForm(current),
      card("History", paged(history.versions, history.next, more, draw)),
    ],
  };
}

/** The current catalog, or null if none is stored. */
async function storedCatalog() {
  try {
    return await get("/admin/catalog");
  } catch (error) {
    if (error.code === "no_catalog") return null;
    throw error;
  }
}

async function catalogVersionView({ id }) {
  const path = (version) => `/admin/catalog/history/${encodeURIComponent(version)}`;
  const [stored, current] = await Promise.all([get(path(id)), storedCatalog()]);
  const { version } = stored;
  const [before, after] = await Promise.all([
    version > 1 ? get(path(version - 1)) : null,
    version < (current?.version ?? 0) ? get(path(version + 1)) : null,
  ]);
  return {
    title: `Catalog version ${number(version)}`,
    back: ["#/catalog", "Catalog"],
    body: [
      card(
        version === current?.version ? "Current catalog" : "Earlier catalog",
        catalogFacts(stored),
        toml(stored.toml, `Version ${version} as TOML`),
      ),
      before && differenceCard(before, stored),
      after && differenceCard(stored, after),
    ],
  };
}

function differenceCard(before, after) {
  const marks = { "+": "Added: ", "-": "Removed: " };
  const lines = difference(before.toml.split("\n"), after.toml.split("\n")).map(([mark, line]) =>
    h(
      "span",
      { class: { "+": "plus", "-": "minus" }[mark] ?? "muted" },
      marks[mark] && h("span", { class: "visually-hidden" }, marks[mark]),
      `${mark} ${line}\n`,
    ),
  );
  return card(
    `From version ${number(before.version)} to ${number(after.version)}`,
    h(
      "pre",
      { tabindex: "0", "aria-label": `Changes from version ${before.version} to ${after.version}` },
      lines,
    ),
  );
}

/** The changed lines of two texts with their surroundings, as pairs of a mark and a line. */
function difference(before, after) {
  let start = 0;
  while (start < Math.min(before.length, after.length) && before[start] === after[start]) start += 1;
  let end = 0;
  const shortest = Math.min(before.length, after.length) - start;
  while (end < shortest && before.at(-1 - end) === after.at(-1 - end)) end += 1;
  const [old, fresh] = [before, after].map((lines) => lines.slice(start, lines.length - end));
  const same = (lines) => lines.map((line) => [" ", line]);
  const all = [
    ...same(before.slice(0, start)),
    ...changedLines(old, fresh),
    ...same(before.slice(before.length - end)),
  ];
  const near = (place) =>
    all.slice(Math.max(0, place - CONTEXT), place + CONTEXT + 1).some(([mark]) => mark !== " ");
  return all.flatMap((line, place) => {
    if (near(place)) return [line];
    return place === 0 || near(place - 1) ? [["…", ""]] : [];
  });
}

/** Removed, added and common lines, by the longest common subsequence. */
function changedLines(old, fresh) {
  if (old.length * fresh.length > MAX_CELLS)
    return [...old.map((line) => ["-", line]), ...fresh.map((line) => ["+", line])];
  const width = fresh.length + 1;
  const common = new Uint32Array((old.length + 1) * width);
  for (let i = old.length - 1; i >= 0; i -= 1) {
    for (let j = fresh.length - 1; j >= 0; j -= 1) {
      common[i * width + j] =
        old[i] === fresh[j]
          ? common[(i + 1) * width + j + 1] + 1
          : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  const lines = [];
  let [i, j] = [0, 0];
  while (i < old.length || j < fresh.length) {
    if (i < old.length && j < fresh.length && old[i] === fresh[j]) {
      lines.push([" ", old[i]]);
      i += 1;
      j += 1;
    } else if (
      j === fresh.length ||
      (i < old.length && common[(i + 1) * width + j] >= common[i * width + j + 1])
    ) {
      lines.push(["-", old[i]]);
      i += 1;
    } else {
      lines.push(["+", fresh[j]]);
      j += 1;
    }
  }
  return lines;
}

/** A form that says what a new catalog changes, and applies it afterwards. */
function catalogForm(current) {
  const text = h(
    "textarea",
    { class: "mono", rows: 14, spellcheck: "false", autocomplete: "off", wrap: "off" },
    current?.toml,
  );
  const result = h("div", { "aria-live": "polite" });
  const put = (parameters) =>
    ask("PUT", `/admin/catalog${query(parameters)}`, { text: text.value, replaces: current?.digest });
  const apply = async (dry) => {
    const answer = await confirmed({
      title: `Apply version ${number(dry.version)}`,
      what: h("p", null, "The functions decide by this catalog within 30 seconds. Every version is kept."),
      confirm: "Apply",
    });
    if (!answer) return;
    await put({ apply: true, reason: answer.reason });
    toast(`Version ${number(dry.version)} is applied.`);
    render();
  };
  const dryRun = async () => {
    result.replaceChildren(busy("Comparing…"));
    try {
      const dry = await put({});
      const isNew = dry.digest !== current?.digest;
      result.replaceChildren(...nodes([dryRunReport(dry, isNew, () => apply(dry))]));
    } catch (error) {
      const stale = error.code === "digest_mismatch";
      const shown = notice(
        "bad",
        stale ? "Another catalog was applied first" : "The catalog is refused",
        stale ? h("p", null, "Refresh this page and make the change again.") : h("pre", null, error.message),
      );
      result.replaceChildren(shown);
    }
  };
  text.addEventListener("input", () => result.replaceChildren());
  const form = h(
    "form",
    { "aria-label": "New catalog" },
    field("Catalog", text, "TOML. A dry run changes nothing; afterwards you can apply it."),
    h("div", { class: "row end" }, h("button", { type: "submit" }, "Dry run")),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    dryRun();
  });
  return card("New catalog", form, result);
}

function dryRunReport(dry, isNew, apply) {
  if (!isNew) return notice("info", null, h("p", null, "This is the current catalog."));
  const { changes, accounts_on_removed_prices: accounts, parked_freed: parked } = dry;
  const names = (list) =>
    list.length > 0 &&
    h(
      "span",
      { class: "ids" },
      list.map((name) => code(name)),
    );
  const counted = ({ count, at_least: atLeast }, links) => [
    atLeast && "at least ",
    number(count),
    count > 0 && ": ",
    links.map((one, place) => [place > 0 && ", ", one]),
  ];
  const value = (text) => (text === null ? h("span", { class: "muted" }, "–") : JSON.stringify(text));
  const columns = [
    { title: "Entry", of: (change) => h("strong", null, change.name) },
    { title: "Field", of: (change) => change.field },
    { title: "Here", class: "prose", of: (change) => value(change.from) },
    { title: "Would be", class: "prose", of: (change) => value(change.to) },
  ];
  return [
    h("h3", null, `What version ${number(dry.version)} changes`),
    facts([
      ["Prices added", names(changes.prices_added)],
      ["Prices removed", names(changes.prices_removed)],
      ["Plans added", names(changes.plans_added)],
      ["Plans removed", names(changes.plans_removed)],
      ["Lookup keys added", names(changes.lookup_keys_added)],
      ["Lookup keys removed", names(changes.lookup_keys_removed)],
      ["Live accounts on removed prices", counted(accounts, accounts.users.map(userLink))],
      ["Parked events that it frees", counted(parked, parked.events.map(eventLink))],
    ]),
    changes.changed.length > 0 && table("Changed fields", columns, changes.changed),
    h("p", { class: "row end" }, button("Apply", apply)),
  ];
}
