"""The start page and its shop, used by a newcomer."""

import re

import pytest
from playwright.sync_api import expect

from conftest import look

SHAPES = {"desktop": (1280, 900), "phone": (360, 740)}


def enter(page, stack, user):
    page.goto(stack.url + "/")
    page.get_by_label("You are the customer").fill(user)
    page.locator("#enter").click()
    expect(page.get_by_role("button", name="Switch")).to_be_enabled()
    figures(page, "free", "500")


def buy(page, what, pay="Pay $"):
    """Buys, pays on the fake checkout page, and ends on the status page."""
    page.get_by_role("button", name=f"Buy {what}", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Pay $")
    page.get_by_role("button", name=pay).click()
    expect(page.get_by_text("Last checked at")).to_be_visible()


def figures(page, tier, credits):
    expect(page.locator("#tier")).to_have_text(tier)
    expect(page.locator("#credits")).to_have_text(credits)


def test_a_bought_plan_is_shown_as_paid_and_credited_once(stack, open_page):
    page = open_page()
    enter(page, stack, "ada lovelace")
    buy(page, "pro")
    expect(page.locator("#step-payment")).to_have_attribute("data-state", "done")
    page.get_by_role("button", name="Refresh status").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Your account is ready")
    expect(page.locator("#step-provisioning")).to_have_attribute("data-state", "done")
    look(page, "shop-status")
    page.get_by_role("link", name="Set your password").click()
    figures(page, "pro", "5,000")

    sent = page.locator("#sent li")
    expect(sent).to_have_count(4)
    kinds = sorted(set(sent.get_by_role("link").all_inner_texts()))
    assert kinds == ["checkout.session.completed", "customer.subscription.created", "invoice.paid"]
    expect(sent.filter(has_text="again")).to_have_count(1)
    granted = page.locator("#ledger li").filter(has_text="balance 5,000")
    expect(granted).to_have_count(1)
    expect(page.locator("#notifications li").filter(has_text="payment.confirmed")).to_have_count(1)
    updated = page.locator("#notifications li").filter(has_text="account.updated").first
    expect(updated).to_contain_text("pro, 5,000")

    page.get_by_role("button", name="Set a password").click()
    expect(page.locator("#setup")).to_have_text("done")
    sent.filter(has_text="invoice.paid").get_by_role("link").first.click()
    page.get_by_label("Admin token").fill("admin-local")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1, name="invoice.paid")).to_be_visible()
    expect(page.get_by_text("processed", exact=True).first).to_be_visible()
    expect(page.get_by_role("link", name="ada lovelace").first).to_be_visible()


def test_a_plan_is_renewed_refunded_changed_and_cancelled_in_the_shop(stack, open_page):
    page = open_page()
    enter(page, stack, "grace")
    page.get_by_role("button", name="Spend 100 credits").click()
    figures(page, "free", "400")
    buy(page, "pro")
    page.goto(stack.url + "/")
    figures(page, "pro", "5,000")
    page.get_by_role("button", name="Spend 100 credits").click()
    figures(page, "pro", "4,900")
    page.get_by_role("button", name="Let one month pass").click()
    figures(page, "pro", "5,000")
    buy(page, "credits_1000")
    page.goto(stack.url + "/")
    figures(page, "pro", "6,000")
    page.get_by_role("button", name="Refund $10.00").click()
    figures(page, "pro", "5,000")
    page.get_by_role("button", name="Refund $20.00").click()
    figures(page, "pro", "0")
    # No second subscription: the billing portal, where plans are changed.
    page.get_by_role("button", name="Buy business", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Your plan: pro")
    look(page, "shop-billing")
    page.get_by_role("button", name="Change to business", exact=True).click()
    # 20,000 less the 5,000 that the refunded payment had granted.
    figures(page, "business", "15,000")
    page.get_by_role("button", name="Cancel the plan").click()
    figures(page, "free", "15,000")
    expect(page.locator("#subscription")).to_have_text("business, canceled")
    expect(page.get_by_role("button", name="Let one month pass")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_yearly_plan_grants_credits_each_month_that_passes(stack, open_page, shape, scheme):
    page = open_page(*SHAPES[shape], scheme)
    user = f"yearly-{shape}-{scheme}"
    enter(page, stack, user)
    page.get_by_role("button", name="Buy pro_yearly", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Pay $200.00 a year")
    page.get_by_role("button", name="Pay $").click()
    expect(page.get_by_text("Last checked at")).to_be_visible()
    page.goto(stack.url + "/")
    figures(page, "pro", "5,000")
    month = page.locator("#month")
    expect(month).to_have_text(re.compile(r"^5,000 credits for \w+, next on \d+ \w+ \d{4}\.$"))
    page.get_by_role("button", name="Spend 100 credits").click()
    figures(page, "pro", "4,900")
    # Half of the 4,900 is more than 2,000, the most that is carried over.
    page.get_by_role("button", name="Let one month pass").click()
    figures(page, "pro", "7,000")
    expect(month).to_contain_text("and 2,000 carried over, next on")
    expect(month).to_contain_text("The test clock shows")
    look(page, f"shop-year-{shape}-{scheme}")
    for _ in range(11):
        shown = month.inner_text()
        page.get_by_role("button", name="Let one month pass").click()
        expect(month).not_to_have_text(shown)
    expect(page.locator("#ledger li").first).to_contain_text("balance 7,000")
    assert stack.account(user)["subscriptions"][0]["status"] == "active"

    page.goto(f"{stack.url}/admin#/users/{user}")
    page.get_by_label("Admin token").fill("admin-local")
    page.get_by_role("button", name="Sign in").click()
    curve = page.get_by_role("img", name="Balance over time")
    curve.scroll_into_view_if_needed()
    look(page, f"user-year-{shape}-{scheme}")
    page.get_by_text("The same as a table").click()
    rows = page.get_by_role("table", name="Balance over time, newest first").get_by_role("row")
    ledger = stack.ask("GET", f"/users/{user}/ledger?limit=50")[1]["entries"]
    expect(rows).to_have_count(len(ledger) + 2)
    expect(rows.nth(1)).to_contain_text("7,000")
    expect(page.locator(".summary")).to_contain_text("Next credits")


def test_a_transfer_that_takes_days_is_credited_when_it_arrives(stack, open_page):
    page = open_page()
    enter(page, stack, "joan")
    buy(page, "credits_5000", pay="By bank transfer")
    expect(page.get_by_role("heading", level=1)).to_have_text("Confirming your payment")
    page.goto(stack.url + "/")
    figures(page, "free", "500")
    page.get_by_role("button", name="The bank transfer arrives").click()
    figures(page, "free", "5,500")
    succeeded = page.locator("#sent li").filter(has_text="checkout.session.async_payment_succeeded")
    expect(succeeded).to_have_count(2)


def test_a_hostile_name_is_shown_as_text_and_a_checkout_can_be_left(stack, open_page):
    page = open_page()
    name = "<img src=x onerror=alert(1)>"
    enter(page, stack, name)
    page.get_by_role("button", name="Buy pro", exact=True).click()
    expect(page.get_by_text(name)).to_be_visible()
    page.get_by_role("button", name="Back to the shop").click()
    figures(page, "free", "500")
    page.goto(stack.url + "/local/stripe/pay/cs_none")
    expect(page.get_by_role("heading", level=1)).to_have_text("There is no such checkout session.")
    look(page, "shop-no-session")


def test_the_shop_works_by_keyboard_alone(stack, open_page):
    page = open_page()
    page.goto(stack.url + "/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the shop")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("You are the customer")).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("keys")
    page.keyboard.press("Enter")
    figures(page, "free", "500")
    page.get_by_role("button", name="Buy pro", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Pay $20.00").press("Enter")
    expect(page.locator("#step-payment")).to_have_attribute("data-state", "done")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_shop_fits_a_laptop_and_a_phone_light_and_dark(stack, open_page, shape, scheme):
    page = open_page(*SHAPES[shape], scheme)
    page.goto(stack.url + "/")
    look(page, f"shop-empty-{shape}-{scheme}")
    enter(page, stack, f"{shape}-{scheme}")
    page.get_by_role("button", name="Buy credits_1000").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Pay $10.00")
    look(page, f"shop-pay-{shape}-{scheme}")
    page.get_by_role("button", name="Pay $").click()
    expect(page.get_by_text("Last checked at")).to_be_visible()
    page.goto(stack.url + "/")
    figures(page, "free", "1,500")
    look(page, f"shop-{shape}-{scheme}")
    page.locator("#sent-title").scroll_into_view_if_needed()
    look(page, f"shop-more-{shape}-{scheme}")
