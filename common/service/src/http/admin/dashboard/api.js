// Calls of the admin API. The token is in this tab's session storage and is sent as a header. It is not a
// cookie, so the browser does not add it to a forged request.

const session = {
  get token() {
    return sessionStorage.getItem("tallyhook.token") ?? "";
  },
  /** The answer of /admin/me: name, role and largest grant of the token. */
  me: null,
  keep(token, me) {
    sessionStorage.setItem("tallyhook.token", token);
    this.me = me;
  },
  end() {
    sessionStorage.clear();
    this.me = null;
  },
};

/** Whether the role may change something. The API decides; the page only leaves out what it would refuse. */
const mayChange = () => session.me !== null && session.me.role !== "viewer";
const mayGrant = () => mayChange() && session.me.max_grant !== 0;

/** What the role may do, as a sentence. */
function roleText({ role, max_grant: max }) {
  if (role === "viewer") return "May read, but not change anything.";
  const may =
    role === "operator" ? "May read, send events again, reconcile and repair users" : "May do everything";
  if (max === null) return `${may}.`;
  const limit = max === 0 ? "but not change credits" : `and change up to ${number(max)} credits at once`;
  return `${may}, ${limit}.`;
}

class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/**
 * Calls the API; an error has the API's message. `token` replaces the stored token at sign-in, and `text` is
 * a body that is not JSON. `replaces` is the digest of what the call replaces.
 */
async function ask(method, path, { body, text: plain, key, replaces, token } = {}) {
  const headers = { authorization: `Bearer ${token ?? session.token}`, accept: "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  if (plain !== undefined) headers["content-type"] = "application/toml";
  if (key) headers["idempotency-key"] = key;
  if (replaces) headers["if-match"] = `"${replaces}"`;
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers,
      body: body === undefined ? plain : JSON.stringify(body),
      cache: "no-store",
    });
  } catch {
    throw new ApiError(
      0,
      "unreachable",
      "The admin API cannot be reached. Check the connection and try again.",
    );
  }
  const text = await answer.text();
  let read = null;
  try {
    read = JSON.parse(text);
  } catch {
    // The body is not JSON, such as an error page of the gateway: show only the status.
  }
  if (answer.ok && read) return read;
  const message = read?.message ?? `The answer was ${answer.status}, without a reason.`;
  if (answer.status === 401 && token === undefined) leave("The token is no longer accepted. Sign in again.");
  throw new ApiError(answer.status, read?.error ?? "failed", message);
}

const get = (path) => ask("GET", path);

const post = (path, body, key) => ask("POST", path, { body, key });

function query(parameters) {
  const set = Object.entries(parameters).filter(
    ([, value]) => value !== null && value !== undefined && value !== "",
  );
  return set.length === 0 ? "" : `?${new URLSearchParams(set)}`;
}

/** Runs reconciliation until it is complete. An unfinished answer says where to continue. */
async function reconcile(body, progress) {
  let whole = null;
  let next = null;
  do {
    const { report } = await post("/admin/stripe/reconcile", { ...body, ...(next ? { next } : {}) });
    if (whole === null) whole = report;
    else {
      for (const list of ["changes", "left", "failures"]) whole[list].push(...report[list]);
      for (const counts of ["read", "found"]) {
        for (const [name, count] of Object.entries(report[counts]))
          whole[counts][name] = (whole[counts][name] ?? 0) + count;
      }
      whole.changed += report.changed;
      whole.omitted += report.omitted;
      Object.assign(whole, { complete: report.complete, stopped: report.stopped });
    }
    next = report.next;
    progress(whole);
  } while (next);
  return whole;
}
