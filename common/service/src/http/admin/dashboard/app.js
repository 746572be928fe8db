// Signing in, and the view for each address.

const VIEWS = {
  "": ["Overview", overviewView],
  events: ["Events", eventsView, eventView],
  users: ["Users", usersView, userView],
  orders: ["Orders", ordersView, orderView],
  parked: ["Parked", parkedView],
  reconcile: ["Reconcile", reconcileView],
  catalog: ["Catalog", catalogView, catalogVersionView],
  audit: ["Audit", auditView],
};

/** `#/events/evt_1?status=parked` */
function route() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  let id = rest.join("/");
  try {
    id = decodeURIComponent(id);
  } catch {
    // Not percent-encoded: use the text as it is.
  }
  return { name, id, parameters: Object.fromEntries(new URLSearchParams(search)) };
}

let drawing = 0;

/** Draws the view of the address. A slow answer for an earlier address is ignored. */
async function render() {
  if (!session.token) return showLogin();
  if (!session.me) return start();
  const turn = (drawing += 1);
  const { name, id, parameters } = route();
  const [, list, one] = VIEWS[name] ?? VIEWS[""];
  document.querySelectorAll("#nav a").forEach((entry) => {
    const own = entry.getAttribute("href") === `#/${VIEWS[name] ? name : ""}`;
    if (own) entry.setAttribute("aria-current", "page");
    else entry.removeAttribute("aria-current");
  });
  $("#login").hidden = true;
  $("#app").hidden = false;
  const place = $("#view");
  place.setAttribute("aria-busy", "true");
  const slow = setTimeout(() => {
    if (turn === drawing) place.replaceChildren(busy());
  }, 250);
  let drawn;
  try {
    const view = await (id && one ? one({ id, parameters }) : list({ parameters }));
    drawn = [heading(view), view.body];
  } catch (error) {
    if (error.status === 401) return;
    if (!(error instanceof ApiError)) console.error(error);
    drawn = [
      heading({ title: error.code === "event_not_found" ? "No such event" : "That did not work" }),
      notice(
        "bad",
        null,
        h("p", null, error.message),
        h(
          "p",
          { class: "row" },
          button("Try again", () => render(), { class: "quiet" }),
        ),
      ),
    ];
  } finally {
    clearTimeout(slow);
  }
  if (turn !== drawing) return;
  place.replaceChildren(...nodes([drawn]));
  place.removeAttribute("aria-busy");
  const title = place.querySelector("h1");
  document.title = `${title.textContent} · tallyhook`;
  announce(`${title.textContent}, loaded`);
  if (focusNext) title.focus({ preventScroll: true });
  focusNext = false;
}

let focusNext = false;

function heading({ title, subtitle, back }) {
  const refresh = button("Refresh", () => render(), { class: "quiet small-button" });
  return h(
    "div",
    { class: "heading" },
    back && h("p", { class: "small back" }, link(back[0], `← ${back[1]}`)),
    h("div", { class: "row" }, h("h1", { tabindex: "-1" }, title), refresh),
    subtitle && h("p", { class: "small" }, subtitle),
  );
}

function showLogin(message = "") {
  $("#app").hidden = true;
  $("#login").hidden = false;
  $("#login-problem").textContent = message;
  document.title = "Sign in · tallyhook";
  $("#token").focus();
}

function leave(message) {
  session.end();
  $("#view").replaceChildren();
  document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
  showLogin(message);
}

$("#login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [token, go] = [$("#token").value.trim(), $("#login-go")];
  go.disabled = true;
  try {
    session.keep(token, await ask("GET", "/admin/me", { token }));
    $("#token").value = "";
    focusNext = true;
    welcome();
    await render();
  } catch (error) {
    $("#login-problem").textContent =
      error.status === 401 ? "This is not the token of an operator of this deployment." : error.message;
    $("#token").select();
  } finally {
    go.disabled = false;
  }
});

$("#leave").addEventListener("click", () => leave("You are signed out."));
$("#skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("#view").querySelector("h1")?.focus();
});
addEventListener("hashchange", () => {
  focusNext = true;
  scrollTo(0, 0);
  render();
});

/** Shows who is signed in, and the sections that the role may use. */
function welcome() {
  const shown = Object.entries(VIEWS).filter(([name]) => name !== "reconcile" || mayChange());
  $("#nav").replaceChildren(...shown.map(([name, [title]]) => link(`#/${name}`, title)));
  $("#who").textContent = `${session.me.name} · ${session.me.role}`;
  $("#who").title = roleText(session.me);
}

/** Reads who the tab's token belongs to, then draws the view. */
async function start() {
  try {
    session.me = await get("/admin/me");
  } catch (error) {
    if (error.status !== 401) showLogin(error.message);
    return;
  }
  welcome();
  await render();
}

render();
