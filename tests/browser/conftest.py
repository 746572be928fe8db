"""A stack of its own, a browser, and events signed as Stripe signs them.

Run by `./check browser`, which has the packages and the browser. A page fails its test by any message on the
console, by a violation of its Content-Security-Policy, and by any request to another host.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

import stack as local  # noqa: E402  pylint: disable=wrong-import-position

SCREENSHOTS = os.environ.get("SCREENSHOTS")  # a folder: keep pictures of the pages there
BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
OPERATORS = [("Vera", "viewer", {}), ("Olga", "operator", {"max_grant": 100})]


class Stack(local.Stack):
    """The local stack with a viewer and an operator."""

    def start(self, seconds=60):
        hashed = lambda role: hashlib.sha256(f"{role}-local".encode()).hexdigest()
        tokens = [{"name": name, "role": role, "sha256": hashed(role), **limit}
                  for name, role, limit in OPERATORS]
        os.environ |= {"LOG_LEVEL": "error", "SUPPORT_EMAIL": "help@example.com",
                       "ADMIN_API_TOKENS": json.dumps(tokens)}
        super().start(seconds)
        self.client = local.Client(self.url)

    def ask(self, method, path, body=None, token="app-local", headers=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json", **(headers or {})}
        return local.request(method, self.url + path, data, headers)

    def sign_up(self, user):
        status, account = self.client.register(user)
        assert status == 200, account

    def account(self, user):
        return self.client.account(user)[1]

    def outcome(self, event_id):
        status, found = self.ask("GET", f"/admin/stripe/webhook-logs/{event_id}", token="admin-local")
        return found["event"]["status"] if status == 200 else None

    def until(self, holds, what, seconds=30):
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
            time.sleep(0.1)

    def apply(self, event):
        """Sends an event and waits until it has ended."""
        assert self.client.post(json.dumps(event))[0] == 200
        self.until(lambda: self.outcome(event["id"]), f"the end of {event['id']}")


def sample(name, user, tag, **fields):
    """A sample event of an hour ago with ids of its own."""
    text = (ROOT / "events" / f"{name}.json").read_text()
    event = json.loads(text.replace("user_123", user).replace("TallyHook0", f"TallyHook{tag}0"))
    event["id"] += tag
    event["created"] = event["data"]["object"]["created"] = int(time.time()) - 3600
    return {**event, **fields}


def pack(user, tag, customer=None, metadata=None):
    """A paid pack. Without a user it names only its customer."""
    event = sample("checkout.session.completed.pack", user or "no-user", tag)
    session = event["data"]["object"]
    session["metadata"] = {"pack": "credits_1000", "quantity": "1", **(metadata or {})}
    if user:
        session["metadata"].setdefault("user_id", user)
    session["client_reference_id"] = user
    if customer:
        session["customer"] = customer
        session["customer_details"]["email"] = f"{customer.lower()}@example.com"
    return event


@pytest.fixture(scope="session")
def stack():
    with Stack() as stack:
        stack.start()
        yield stack


@pytest.fixture(scope="session")
def browser():
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    assert path, "no browser: install Debian's package chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, stack):
    """Opens pages that may say nothing on the console and reach no other host."""
    contexts, complaints = [], []

    def open_page(width=1280, height=900, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme,
                                      locale="en-GB", timezone_id="UTC")
        contexts.append(context)
        context.add_init_script(
            "addEventListener('securitypolicyviolation', (event) =>"
            " console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`))"
        )
        page = context.new_page()
        # The browser reports an answer such as 401 or 503, which a test causes on purpose.
        answered = "the server responded with a status of"
        is_wrong = lambda message: message.type in ("error", "warning") and answered not in message.text
        page.on("console", lambda message: complaints.append(message.text) if is_wrong(message) else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        own = ("", urlsplit(stack.url).netloc)  # a data: URL has no host
        foreign = lambda request: urlsplit(request.url).netloc not in own
        report = lambda request: complaints.append(f"request to {request.url}")
        page.on("request", lambda request: report(request) if foreign(request) else None)
        page.set_default_timeout(15_000)
        expect.set_options(timeout=15_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def look(page, name):
    """Checks that a page fits its window and is accessible. Keeps a picture if SCREENSHOTS is set."""
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1], f"{name} scrolls sideways: {width}"
    spilled = page.evaluate("""[...document.querySelectorAll('.card')]
        .filter((card) => card.scrollWidth > card.clientWidth).map((card) => card.innerText.slice(0, 60))""")
    assert spilled == [], f"{name}: wider than their cards: {spilled}"
    broken = page.evaluate("""[...document.querySelectorAll('nav a')].filter((link) => {
        const text = document.createRange();
        text.selectNodeContents(link);
        return text.getClientRects().length > 1;
    }).map((link) => link.innerText)""")
    assert broken == [], f"{name}: links of the navigation break within a word: {broken}"
    slivers = page.evaluate("""[...document.querySelectorAll('code')]
        .filter((code) => code.getClientRects().length > 4).map((code) => code.innerText)""")
    assert slivers == [], f"{name}: ids broken into slivers: {slivers}"
    problems = page.evaluate(CHECKS)
    assert problems == [], f"{name}: {problems}"
    if SCREENSHOTS:
        picture = pathlib.Path(SCREENSHOTS) / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(200)
        page.screenshot(path=picture)


# The checks of accessibility that a program can make: names, labels, landmarks, headings, ids, contrast.
CHECKS = r"""() => {
  const shown = (node) => node.checkVisibility({ visibilityProperty: true });
  const all = (selector) => [...document.querySelectorAll(selector)].filter(shown);
  const problems = [];
  const report = (node, what) => problems.push(`${what}: ${node.outerHTML.slice(0, 120)}`);
  const name = (node) => {
    const ids = (node.getAttribute("aria-labelledby") ?? "").split(/\s+/);
    const by = ids.map((id) => document.getElementById(id)?.textContent ?? "").join(" ");
    const labels = [...(node.labels ?? [])].map((label) => label.textContent).join(" ");
    const label = node.getAttribute("aria-label") || labels || node.textContent || node.title || "";
    return (by.trim() || label).trim();
  };
  const controls = "a[href], button, input, select, textarea, summary, [tabindex='0']";
  all(`${controls}, [role=img], dialog[open], nav`).forEach((node) => name(node) || report(node, "no name"));
  all("section").forEach((node) => name(node) || report(node, "a section without a name"));
  const inert = (node) => document.querySelector("dialog[open]") && !node.closest("dialog");
  if (all("main").length !== 1) problems.push(`${all("main").length} main landmarks`);
  if (all("h1").length !== 1) problems.push(`${all("h1").length} h1`);
  if (!document.documentElement.lang) problems.push("no language");
  if (!document.title) problems.push("no title");
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  ids.filter((id, place) => ids.indexOf(id) !== place).forEach((id) => problems.push(`id twice: ${id}`));
  const linear = (part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const channel = (value) => linear(value / 255);
  const read = (color) => (color.match(/[\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = read(getComputedStyle(at).backgroundColor);
      if (color.length && (color[3] ?? 1) > 0.99) return color;
    }
    return [255, 255, 255];
  };
  all("body *").forEach((node) => {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || inert(node) || node.closest("svg, :disabled, .visually-hidden, .skip, option")) return;
    const colors = [light(read(getComputedStyle(node).color)), light(behind(node))];
    const [one, two] = colors.sort((a, b) => b - a);
    const contrast = (one + 0.05) / (two + 0.05);
    if (contrast < 4.5) report(node, `contrast ${contrast.toFixed(2)}`);
  });
  return problems.slice(0, 10);
}"""
