// Functions that build elements. Values become text nodes; this script never reads markup from a value.
"use strict";

/**
 * Makes an element: `h("a", {href: "#/", class: "x"}, "text", child, [more])`. An attribute whose value is a
 * function is an event handler.
 */
function h(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(key, value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

function svg(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes ?? {})) element.setAttribute(key, String(value));
  element.append(...nodes(children));
  return element;
}

function nodes(children) {
  const flat = children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false);
  return flat.map((child) => (child instanceof Node ? child : document.createTextNode(String(child))));
}

/** Formats a text of the API as a sentence. */
const sentence = (text) =>
  text ? `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.?!]$/.test(text) ? "" : "."}` : "";

const $ = (selector) => document.querySelector(selector);

/** Lets screen readers say a text without moving the focus. */
function announce(text) {
  $("#live").textContent = text;
}

const SHORT = new Intl.DateTimeFormat(undefined, {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});
const DATED = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });
const LONG = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const NUMBER = new Intl.NumberFormat();
const number = (value) => NUMBER.format(value);

function ago(date) {
  const seconds = Math.round((Date.now() - date.getTime()) / 1000);
  if (Math.abs(seconds) < 60) return "just now";
  const steps = [
    ["min", 60],
    ["h", 3600],
    ["d", 86400],
  ];
  const [unit, size] = steps.findLast(([, size]) => Math.abs(seconds) >= size);
  const count = Math.floor(Math.abs(seconds) / size);
  return seconds > 0 ? `${count} ${unit} ago` : `in ${count} ${unit}`;
}

/** Shows a time of the API in the browser's time zone; the title has the exact time. */
function when(text, relative = false) {
  if (!text) return h("span", { class: "muted" }, "–");
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return h("span", null, text);
  return h(
    "time",
    { datetime: text, title: `${LONG.format(date)} (${text})` },
    relative
      ? ago(date)
      : (date.getFullYear() === new Date().getFullYear() ? SHORT : DATED).format(date),
  );
}

const TONES = {
  processed: "ok",
  ignored: "info",
  duplicate: "info",
  parked: "warn",
  dismissed: "info",
  failed: "bad",
  active: "ok",
  trialing: "ok",
  past_due: "warn",
  unpaid: "warn",
  paused: "warn",
  incomplete: "warn",
  canceled: "bad",
  incomplete_expired: "bad",
  NEW: "warn",
  IN_PROGRESS: "info",
  DELIVERED: "ok",
  REVISION: "warn",
  DONE: "ok",
  REFUNDED: "bad",
};

function pill(text, tone) {
  return h(
    "span",
    { class: "pill", "data-tone": tone ?? TONES[text] ?? "none" },
    String(text ?? "unknown").replaceAll("_", " "),
  );
}

function code(text) {
  return h("code", { class: "id" }, text);
}

function link(hash, ...children) {
  return h("a", { href: hash }, ...children);
}

const userLink = (user) =>
  user ? link(`#/users/${encodeURIComponent(user)}`, user) : h("span", { class: "muted" }, "–");
const eventLink = (id) => link(`#/events/${encodeURIComponent(id)}`, code(id));

function card(title, ...children) {
  const id = `section-${Math.random().toString(36).slice(2)}`;
  return h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, title), ...children);
}

function notice(tone, title, ...children) {
  return h("div", { class: "notice", "data-tone": tone }, title && h("h3", null, title), ...children);
}

const empty = (text) => h("p", { class: "empty muted" }, text);
const busy = (text = "Loading…") =>
  h(
    "p",
    { class: "busy muted", role: "status" },
    h("span", { class: "spinner", "aria-hidden": "true" }),
    text,
  );

/** A table that becomes cards on a narrow screen. It sets the roles, which the cards' style removes. */
function table(caption, columns, rows) {
  const head = h(
    "tr",
    { role: "row" },
    columns.map((column) =>
      h("th", { role: "columnheader", scope: "col", class: column.class }, column.title),
    ),
  );
  const body = rows.map((row) =>
    h(
      "tr",
      { role: "row" },
      columns.map((column) =>
        h(
          "td",
          { role: "cell", "data-title": column.title, class: column.class },
          h("div", null, column.of(row)),
        ),
      ),
    ),
  );
  return h(
    "table",
    { role: "table", class: "cards" },
    h("caption", { class: "visually-hidden" }, caption),
    h("thead", { role: "rowgroup" }, head),
    h("tbody", { role: "rowgroup" }, body),
  );
}

function facts(pairs) {
  const shown = pairs.filter(
    ([, value]) => value !== null && value !== undefined && value !== false && value !== "",
  );
  return h(
    "dl",
    null,
    shown.map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
  );
}

function button(text, act, attributes) {
  const made = h("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", async () => {
    if (made.disabled) return;
    made.disabled = true;
    try {
      await act(made);
    } catch (error) {
      toast(error.message, "bad");
    } finally {
      made.disabled = false;
    }
  });
  return made;
}

/** A button that changes something; nothing for a role that may not. */
const changeButton = (text, act, attributes) => mayChange() && button(text, act, attributes);

let fields = 0;
function field(label, input, hint) {
  fields += 1;
  input.id = `field-${fields}`;
  const hintId = hint ? `hint-${fields}` : null;
  if (hintId) input.setAttribute("aria-describedby", hintId);
  return h(
    "div",
    { class: "field" },
    h("label", { for: input.id }, label),
    input,
    hint && h("p", { id: hintId, class: "small muted" }, hint),
  );
}

function toast(text, tone = "ok") {
  const shown = h(
    "div",
    { class: "toast notice", "data-tone": tone, role: tone === "bad" ? "alert" : "status" },
    h("p", null, text),
  );
  $("#toasts").append(shown);
  setTimeout(() => shown.remove(), tone === "bad" ? 12000 : 6000);
}

/**
 * Asks for a confirmation and a reason before a change. Resolves to the reason and the values of `extra`, or
 * to null when the dialog is closed without confirming.
 */
function confirmed({ title, what, extra, confirm, danger }) {
  return new Promise((resolve) => {
    const reason = h("input", {
      name: "reason",
      required: true,
      maxlength: 300,
      autocomplete: "off",
      placeholder: "ticket 4711: paid, not credited",
    });
    const problem = h("p", { class: "form-problem", role: "alert" });
    const titleId = `dialog-${(fields += 1)}`;
    const go = h("button", { type: "submit", class: danger ? "danger" : null }, confirm);
    const form = h(
      "form",
      { method: "dialog", novalidate: true },
      h("h2", { id: titleId }, title),
      extra?.fields,
      h("div", { class: "what", "aria-live": "polite" }, what),
      field("Reason", reason, `Kept in the audit with your name, ${session.me.name}.`),
      problem,
      h(
        "div",
        { class: "row end" },
        h("button", { type: "button", class: "quiet", click: () => dialog.close() }, "Cancel"),
        go,
      ),
    );
    const dialog = h("dialog", { "aria-labelledby": titleId }, form);
    let answer = null;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const wrong =
        extra?.check?.() ??
        (reason.value.trim() ? null : "Say why; the reason is kept with the change.");
      if (wrong) {
        problem.textContent = wrong;
        return;
      }
      answer = { reason: reason.value.trim(), ...(extra?.value?.() ?? {}) };
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
    (extra?.first ?? reason).focus();
  });
}
