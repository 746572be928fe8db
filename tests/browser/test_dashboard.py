"""The dashboard as an operator uses it."""

import json

import pytest
from playwright.sync_api import expect

from conftest import look, pack, sample

# So that ids are as long as Stripe's.
LONG = "1MowQVLkdIwHu7ix"
SHAPES = {"desktop": (1280, 900), "tablet": (1024, 768), "phone": (360, 740)}


@pytest.fixture(scope="session")
def shop(stack):
    """Some users: one in order, one with a payment that never arrived, one with an unlinked customer."""
    for user, tag in [("ada", "A"), ("lost", "L"), ("long", LONG)]:
        stack.sign_up(user)
        stack.apply(sample("customer.subscription.created", user, tag))
    stack.apply(sample("invoice.paid", "ada", "A"))
    stack.apply(sample("invoice.paid", "long", LONG))
    stack.apply(pack("ada", "A2"))
    # Stripe has this invoice. Its event had the other mode, so it granted nothing here.
    stack.apply(sample("invoice.paid", "lost", "L", livemode=True))
    stack.sign_up("kim")
    for number in range(2):
        stack.apply(pack(None, f"K{number}", customer="cus_Kim1"))
    stack.apply(pack("ada", "odd", metadata={"pack": "gold_9000"}))
    return stack


def sign_in(page, stack, where="", token="admin-local"):
    page.goto(f"{stack.url}/admin{where}")
    page.get_by_label("Admin token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def ready(page, title):
    expect(page.get_by_role("heading", level=1, name=title)).to_be_visible()
    expect(page.locator("#view:not([aria-busy])")).to_be_visible()


def confirm(page, button, reason="ticket 4711"):
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill(reason)
    look(page, f"confirm-{button.lower()}")
    dialog.get_by_role("button", name=button, exact=True).click()
    expect(dialog).to_have_count(0)


def test_a_valid_token_is_kept_for_the_tab_until_signing_out(shop, open_page):
    page = open_page()
    sign_in(page, shop, token="wrong")
    expect(page.get_by_role("alert")).to_contain_text("not the token of an operator")
    expect(page.get_by_label("Admin token")).to_be_focused()
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0
    look(page, "login")
    page.get_by_label("Admin token").fill("admin-local")
    page.keyboard.press("Enter")
    ready(page, "Overview")
    page.reload()
    ready(page, "Overview")
    assert page.context.cookies() == []
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Admin token")).to_be_visible()
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0
    assert "ada" not in page.content()


def test_a_token_that_is_no_longer_accepted_asks_for_another(shop, open_page):
    page = open_page()
    sign_in(page, shop)
    ready(page, "Overview")
    page.evaluate("sessionStorage.setItem('tallyhook.token', 'old')")
    page.get_by_role("link", name="Audit").click()
    expect(page.get_by_role("alert").first).to_contain_text("no longer accepted")


@pytest.mark.parametrize("shape", ["desktop", "phone"])
def test_a_viewer_has_no_buttons_that_change_something(shop, open_page, shape):
    page = open_page(*SHAPES[shape])
    sign_in(page, shop, token="viewer-local")
    ready(page, "Overview")
    expect(page.get_by_text("Signed in as Vera, viewer. May read, but not change anything.")).to_be_visible()
    expect(page.locator("#who")).to_have_text("Vera · viewer")
    for where, title in [
        ("#/parked", "Parked"), ("#/users/ada", "ada"), ("#/users/lost", "lost"),
        ("#/events?status=parked", "Events"),
        ("#/orders", "Orders"), ("#/audit", "Audit"), ("#/reconcile", "Reconcile"), ("#/catalog", "Catalog"),
    ]:
        page.evaluate(f"location.hash = '{where}'")
        ready(page, title)
        look(page, f"viewer-{title.lower()}-{shape}")
        names = page.get_by_role("button").all_inner_texts()
        assert set(names) <= {"Refresh", "Sign out", "Filter", "Find", "More"}, (where, names)
    page.evaluate("location.hash = '#/events'")
    ready(page, "Events")
    page.get_by_role("table").get_by_role("link").first.click()
    expect(page.get_by_label("The payload as text")).to_be_visible()
    expect(page.get_by_role("button", name="Send again")).to_have_count(0)
    expect(page.get_by_role("link", name="Reconcile")).to_have_count(0)


def test_an_operator_grants_up_to_the_limit_of_the_token(shop, open_page):
    page = open_page()
    shop.sign_up("limited")
    sign_in(page, shop, "#/users/limited", token="operator-local")
    ready(page, "limited")
    page.get_by_role("button", name="Grant credits").click()
    page.get_by_role("dialog").get_by_label("Credits").fill("101")
    page.get_by_role("dialog").get_by_label("Reason").fill("too much")
    page.get_by_role("dialog").get_by_role("button", name="Grant", exact=True).click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("At most 100 credits at once")
    page.get_by_role("dialog").get_by_label("Credits").fill("100")
    confirm(page, "Grant", "outage on Friday")
    expect(page.locator(".summary")).to_contain_text("600")
    page.get_by_role("link", name="Audit").click()
    ready(page, "Audit")
    expect(page.get_by_role("row").filter(has_text="limited 100")).to_contain_text("Olga")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_page_fits_a_laptop_a_tablet_and_a_phone_light_and_dark(shop, open_page, shape, scheme):
    page = open_page(*SHAPES[shape], scheme)
    sign_in(page, shop)
    ready(page, "Overview")
    look(page, f"overview-{shape}-{scheme}")
    for name, where, title in [
        ("events", "#/events", "Events"), ("users", "#/users", "Users"), ("parked", "#/parked", "Parked"),
        ("orders", "#/orders", "Orders"), ("reconcile", "#/reconcile", "Reconcile"),
        ("audit", "#/audit", "Audit"), ("catalog", "#/catalog", "Catalog"), ("user", "#/users/ada", "ada"),
        ("long", "#/users/long", "long"), ("no-user", "#/users/no%20such%20user", "no such user"),
        ("unknown", "#/events/evt_none", "No such event"),
    ]:
        page.evaluate(f"location.hash = '{where}'")
        ready(page, title)
        look(page, f"{name}-{shape}-{scheme}")


def test_the_dashboard_works_by_keyboard_and_announces_each_page(shop, open_page):
    page = open_page()
    sign_in(page, shop)
    ready(page, "Overview")
    page.get_by_role("link", name="Parked", exact=True).focus()
    page.keyboard.press("Enter")
    ready(page, "Parked")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    expect(page.get_by_role("link", name="Parked", exact=True)).to_have_attribute("aria-current", "page")
    expect(page).to_have_title("Parked · tallyhook")
    expect(page.locator("[aria-live]#live")).to_have_text("Parked, loaded")
    page.get_by_role("button", name="Link cus_Kim1").press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_overview_names_every_deduction_and_its_chart_has_a_table(shop, open_page):
    page = open_page()
    sign_in(page, shop)
    ready(page, "Overview")
    expect(page.get_by_role("img", name="Health score")).to_be_visible()
    expect(page.get_by_text("3 events are parked")).to_be_visible()
    page.get_by_text("The same as a table").click()
    row = page.get_by_role("table", name="Events by outcome and time").get_by_role("row").nth(1)
    row.get_by_role("link").click()
    ready(page, "Events")
    assert "from=" in page.url and "to=" in page.url
    page.go_back()
    page.get_by_role("link", name="7 days").click()
    expect(page.get_by_role("link", name="7 days")).to_have_attribute("aria-current", "true")


def test_the_log_can_be_filtered_and_linked_and_shows_one_event(shop, open_page):
    page = open_page()
    sign_in(page, shop, "#/events?status=parked")
    ready(page, "Events")
    rows = page.get_by_role("table", name="Events, newest first").get_by_role("row")
    expect(rows).to_have_count(4)
    expect(page.get_by_label("Outcome")).to_have_value("parked")
    page.get_by_label("User", exact=True).fill("ada")
    page.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(2)
    assert "user=ada" in page.url
    rows.nth(1).get_by_role("link").first.click()
    ready(page, "checkout.session.completed")
    expect(page.get_by_text("Add gold_9000 to catalog.toml")).to_be_visible()
    expect(page.get_by_label("The payload as text")).to_contain_text('"pack": "gold_9000"')
    look(page, "event")
    page.get_by_role("link", name="← Events").click()
    page.get_by_label("Event id").fill("evt_nothing")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("No event fits this filter.")).to_be_visible()


def test_an_event_is_sent_again_after_confirmation_and_is_in_the_audit(shop, open_page):
    page = open_page()
    event = pack("ada", "again", metadata={"pack": "silver_1"})
    shop.apply(event)
    sign_in(page, shop, f"#/events/{event['id']}")
    ready(page, "checkout.session.completed")
    page.get_by_role("button", name="Send again", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Send again").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("Say why")
    confirm(page, "Send again", "checked the metadata")
    expect(page.get_by_role("status").filter(has_text="in its queue")).to_be_visible()
    expect(page.get_by_text("2", exact=True)).to_be_visible()
    page.get_by_role("link", name="Audit").click()
    ready(page, "Audit")
    row = page.get_by_role("row").filter(has_text=event["id"])
    expect(row).to_contain_text("admin")
    expect(row).to_contain_text("checked the metadata")


def test_why_a_user_has_no_credits_is_found_and_fixed_in_under_a_minute(shop, open_page):
    page = open_page()
    sign_in(page, shop, "#/users")
    ready(page, "Users")
    page.get_by_label("Who?").fill("lost")
    page.get_by_role("button", name="Find").click()
    ready(page, "lost")
    expect(page.get_by_role("heading", name="Something is missing here")).to_be_visible()
    expect(page.get_by_text("so nothing was granted")).to_be_visible()
    look(page, "user-differs")
    page.get_by_role("button", name="Apply Stripe's state").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("credits 5000")
    confirm(page, "Apply")
    expect(page.get_by_role("heading", name="In order")).to_be_visible()
    assert shop.account("lost")["credits"] == 5000


def test_a_parked_purchase_is_found_by_its_address_and_applied_by_linking_its_customer(shop, open_page):
    page = open_page()
    sign_in(page, shop, "#/users")
    ready(page, "Users")
    email = "CUS_Kim1@example.com"
    page.get_by_label("Who?").fill(email)
    page.get_by_role("button", name="Find").click()
    page.get_by_role("row").filter(has_text="cus_Kim1").get_by_role("button", name="Link to a user").click()
    page.get_by_role("dialog").get_by_label("User").fill("kim")
    confirm(page, "Link")
    ready(page, "kim")
    expect(page.locator(".summary")).to_contain_text("2,500")
    assert shop.account("kim")["credits"] == 2500
    assert email not in page.url


def test_credits_are_granted_and_revoked_with_a_reason_after_a_preview(shop, open_page):
    page = open_page(*SHAPES["phone"])
    shop.sign_up("goodwill")
    sign_in(page, shop, "#/users/goodwill")
    ready(page, "goodwill")
    page.get_by_role("button", name="Grant credits").click()
    page.get_by_role("dialog").get_by_label("Credits").fill("250")
    expect(page.get_by_role("dialog")).to_contain_text("has 500 credits and will have 750")
    confirm(page, "Grant", "outage on Friday")
    expect(page.locator(".summary")).to_contain_text("750")
    page.get_by_role("button", name="Revoke credits").click()
    page.get_by_role("dialog").get_by_label("Credits").fill("1000")
    expect(page.get_by_role("dialog")).to_contain_text("250 of them are already spent")
    confirm(page, "Revoke", "a mistake")
    expect(page.get_by_role("status").filter(has_text="goodwill has 0 credits now")).to_be_visible()
    ledger = shop.ask("GET", "/users/goodwill/ledger")[1]["entries"]
    changes = [(entry["delta"], entry.get("reason")) for entry in ledger[:2]]
    assert changes == [(-750, "a mistake"), (250, "outage on Friday")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("shape", ["desktop", "phone"])
def test_a_user_shows_a_waiting_payment_a_hold_and_the_balance_over_time(shop, open_page, shape, scheme):
    user, tag = f"waits-{shape}-{scheme}", f"W{shape}{scheme}"
    shop.sign_up(user)
    shop.apply(sample("customer.subscription.created", user, tag))
    shop.apply(sample("invoice.paid", user, tag))
    shop.apply(sample("invoice.payment_action_required", user, tag))
    for path, body in [("consume", {"amount": 1200}), ("holds", {"amount": 300, "ttl_seconds": 900})]:
        key = {"idempotency-key": path}
        assert shop.ask("POST", f"/users/{user}/credits/{path}", body, headers=key)[0] < 300
    page = open_page(*SHAPES[shape], scheme)
    sign_in(page, shop, f"#/users/{user}")
    ready(page, user)
    link = page.get_by_role("link", name="Open the invoice's page at Stripe")
    expect(link).to_have_attribute("href", "https://invoice.stripe.com/i/acct_1TallyHook/test_0004")
    expect(link).to_have_attribute("rel", "noreferrer noopener")
    expect(page.locator(".summary")).to_contain_text("3,500")
    expect(page.get_by_text("300 credits are held for jobs that run; 3,500 are available.")).to_be_visible()
    look(page, f"user-waits-{shape}-{scheme}")
    curve = page.get_by_role("img", name="Balance over time")
    expect(curve.locator("desc")).to_contain_text("3 changes")
    summary = page.get_by_text("The same as a table")
    summary.focus()
    page.keyboard.press("Enter")
    rows = page.get_by_role("table", name="Balance over time, newest first").get_by_role("row")
    expect(rows).to_have_count(5)
    expect(rows.nth(2)).to_contain_text("-1,200")
    summary.scroll_into_view_if_needed()
    look(page, f"user-balance-{shape}-{scheme}")


def test_an_invoice_s_page_is_linked_only_by_https(shop, open_page):
    shop.sign_up("hosted")
    shop.apply(sample("customer.subscription.created", "hosted", "H"))
    event = sample("invoice.payment_action_required", "hosted", "H")
    event["data"]["object"]["hosted_invoice_url"] = "javascript:alert(1)//<b>"
    shop.apply(event)
    page = open_page()
    sign_in(page, shop, "#/users/hosted")
    ready(page, "hosted")
    assert page.locator("a[href^='javascript']").count() == 0
    assert page.locator(".notice b").count() == 0


def test_reconcile_shows_a_dry_run_before_it_applies_repairs(shop, open_page):
    shop.sign_up("drift")
    shop.apply(sample("customer.subscription.created", "drift", "D"))
    shop.apply(sample("invoice.paid", "drift", "D", livemode=True))
    page = open_page()
    sign_in(page, shop, "#/reconcile")
    ready(page, "Reconcile")
    page.get_by_label("Only this user").fill("drift")
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_role("heading", name="Would be repaired")).to_be_visible()
    assert shop.account("drift")["credits"] == 500
    look(page, "reconcile-dry-run")
    page.get_by_role("button", name="Apply 1").click()
    confirm(page, "Apply", "webhook was down")
    expect(page.get_by_role("heading", name="Applied")).to_be_visible()
    assert shop.account("drift")["credits"] == 5000


def test_hostile_metadata_is_shown_as_plain_text(shop, open_page):
    hostile = {
        "<img src=x onerror=alert(1)>": "<script>alert(document.domain)</script>",
        "formula": "=HYPERLINK(\"http://evil.example\")", "__proto__": "polluted",
        "pack": "=cmd|' /C calc'!A0", "big": "x" * 500_000,
    }
    event = pack("ada", "hostile", metadata=hostile)
    event["data"]["object"]["customer_details"]["email"] = "\"><script>alert(1)</script>@example.com"
    shop.apply(event)
    page = open_page()
    alerts = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    sign_in(page, shop, f"#/events/{event['id']}")
    ready(page, "checkout.session.completed")
    payload = page.get_by_label("The payload as text")
    show_all = page.get_by_role("button", name="Show all")
    show_all.click()
    expect(payload).to_contain_text("<script>alert(document.domain)</script>")
    assert json.loads(payload.inner_text())["data"]["object"]["metadata"]["big"] == hostile["big"]
    look(page, "hostile-event")
    pages = [("#/parked", "Parked"), ("#/users/ada", "ada"), ("#/events?status=parked", "Events")]
    for where, title in pages:
        page.evaluate(f"location.hash = '{where}'")
        ready(page, title)
        look(page, "hostile")
    page.evaluate("location.hash = '#/users/' + encodeURIComponent('<script>alert(1)</script>')")
    ready(page, "<script>alert(1)</script>")
    assert alerts == [] and page.evaluate("document.querySelectorAll('#view script, #view img').length") == 0
    assert page.evaluate("({}).polluted === undefined")


def test_an_unavailable_api_is_reported_and_can_be_tried_again(shop, open_page):
    page = open_page()
    sign_in(page, shop)
    ready(page, "Overview")
    error = {"error": "store_unavailable", "message": "the database did not answer; try again"}
    page.route("**/admin/audit", lambda route: route.fulfill(status=503, json=error))
    page.get_by_role("link", name="Audit").click()
    ready(page, "That did not work")
    expect(page.get_by_text("the database did not answer")).to_be_visible()
    page.unroute("**/admin/audit")
    page.get_by_role("button", name="Try again").click()
    ready(page, "Audit")


def test_a_failed_message_to_the_app_can_be_sent_again(shop, open_page):
    page = open_page(*SHAPES["phone"])
    failed = {"job": "provision", "event": "PAYMENT_CONFIRMED", "user_id": "ada", "status": "failed",
              "attempts": 4, "since": "2026-01-05T10:00:00Z", "finished_at": "2026-01-05T10:30:00Z",
              "reason": "all attempts failed; the last one: the app answered 500 <b>"}
    jobs, asked = [failed], []

    def answer(route):
        if route.request.method == "POST":
            asked.append(route.request.post_data_json)
            jobs.clear()
            route.fulfill(json={"job": "provision", "user_id": "ada", "result": "queued"})
        else:
            route.fulfill(json={"jobs": jobs, "waiting": 0, "more": False})

    page.route("**/admin/provisioning", answer)
    sign_in(page, shop, "#/parked")
    ready(page, "Parked")
    expect(page.get_by_text("the app answered 500 <b>")).to_be_visible()
    look(page, "not-reported")
    page.get_by_role("button", name="Report again about ada, provision").click()
    confirm(page, "Report", "the app is back")
    reported = page.get_by_role("status").filter(has_text="The change of ada is reported to the app again")
    expect(reported).to_be_visible()
    expect(page.get_by_role("heading", name="Not reported to the app")).to_have_count(0)
    calls = [(body["job"], body["user_id"], body["reason"]) for body in asked]
    assert calls == [("provision", "ada", "the app is back")]


@pytest.mark.parametrize("shape", ["desktop", "phone"])
def test_a_catalog_is_compared_then_applied_and_every_version_is_kept(shop, open_page, shape):
    pack_name, current = f"silver_{shape}", shop.ask("GET", "/admin/catalog", token="admin-local")[1]
    event = pack("ada", f"silver{shape}", metadata={"pack": pack_name})
    shop.apply(event)
    page = open_page(*SHAPES[shape])
    sign_in(page, shop, "#/catalog", token="operator-local")
    ready(page, "Catalog")
    expect(page.get_by_label("The current catalog as TOML")).to_contain_text("[tiers]")
    text = page.get_by_label("Catalog", exact=True)
    expect(text).to_have_value(current["toml"])
    text.fill("[tiers]\nfree = \"<b>\"\n")
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_role("heading", name="The catalog is refused")).to_be_visible()
    expect(page.get_by_text("line 2")).to_be_visible()
    look(page, f"catalog-refused-{shape}")

    hostile = "# <script>alert(1)</script>"
    sold = f'[[pack]]\nname = "{pack_name}"\ncredits = 9\nprices = ["price_{pack_name}"]\n'
    new = f'{current["toml"]}\n{hostile}\n{sold}'
    new = new.replace("trial_credits = 5000", "trial_credits = 6000")
    text.fill(new)
    expect(page.get_by_role("heading", name="The catalog is refused")).to_have_count(0)
    page.get_by_role("button", name="Dry run").click()
    version = current["version"] + 1
    expect(page.get_by_role("heading", name=f"What version {version} changes")).to_be_visible()
    expect(page.get_by_text(f"price_{pack_name}", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name=event["id"])).to_be_visible()
    if shape == "desktop":
        expect(page.get_by_role("row").filter(has_text="trial_credits")).to_contain_text("6000")
    assert shop.ask("GET", "/admin/catalog", token="admin-local")[1]["digest"] == current["digest"]
    page.get_by_role("button", name="Apply").scroll_into_view_if_needed()
    look(page, f"catalog-dry-run-{shape}")
    page.get_by_role("button", name="Apply").click()
    confirm(page, "Apply", f"a <b>{shape}</b> pack")
    row = page.get_by_role("table", name="Versions of the catalog, newest first").get_by_role("row").nth(1)
    expect(row).to_contain_text(f"a <b>{shape}</b> pack")
    expect(row).to_contain_text("Olga")
    applied = shop.ask("GET", "/admin/catalog", token="admin-local")[1]
    assert (applied["version"], applied["toml"]) == (version, new)

    row.get_by_role("link", name=str(version)).click()
    ready(page, f"Catalog version {version}")
    changes = page.get_by_label(f"Changes from version {version - 1} to {version}")
    expect(changes).to_contain_text(f"+ {hostile}")
    assert "[tiers]" not in changes.inner_text()
    changes.scroll_into_view_if_needed()
    look(page, f"catalog-version-{shape}")
    page.evaluate(f"location.hash = '#/catalog/{version - 1}'")
    ready(page, f"Catalog version {version - 1}")
    expect(changes).to_contain_text(f"+ {hostile}")

    shop.until(lambda: shop.outcome(event["id"]) == "processed", "the event that the catalog frees")
    page.evaluate(f"location.hash = '#/events/{event['id']}'")
    ready(page, "checkout.session.completed")
    expect(page.get_by_text(applied["digest"], exact=True)).to_be_visible()
    assert page.locator("#view script, #view b").count() == 0
