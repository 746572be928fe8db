"""The status page that a customer sees after checkout."""

import json

import pytest
from playwright.sync_api import expect

from conftest import look, pack


def answer(payment, provisioning, password, action):
    return {"payment_state": payment, "provisioning_state": provisioning, "password_state": password,
            "next_action": action}


CONFIRMING = answer("confirming", "not_started", "not_sent", "wait_payment")
LIFE = [
    (CONFIRMING, "Confirming your payment", "busy", "waiting"),
    (answer("paid", "running", "not_sent", "wait_provisioning"), "Payment received", "done", "busy"),
    (answer("paid", "completed", "not_sent", "set_password"), "Your account is ready", "done", "done"),
    (answer("paid", "completed", "set", "go_to_dashboard"), "All done", "done", "done"),
]


def answer_requests(page, respond):
    """Answers the page's requests with `respond`, and controls the page's clock. Returns the requests."""
    asked = []

    def fulfil(route):
        asked.append(route.request.url)
        route.fulfill(status=200, content_type="application/json", body=json.dumps(respond()))

    page.clock.install()
    page.route("**/portal/setup-status*", fulfil)
    return asked


def test_a_payment_that_was_processed_is_shown_as_paid(stack, open_page):
    stack.sign_up("buyer")
    event = pack("buyer", "status")
    stack.apply(event)
    page = open_page(360, 740)
    page.goto(f"{stack.url}/portal/status?session_id={event['data']['object']['id']}")
    expect(page.locator("#step-payment")).to_have_attribute("data-state", "done")
    expect(page.locator("#status")).to_have_attribute("data-celebrates", "")
    expect(page.get_by_role("alert")).to_have_count(0)
    look(page, "status-paid")


@pytest.mark.parametrize("shape", [(1280, 900, "light"), (360, 740, "dark")])
def test_it_polls_from_confirming_to_done_and_then_stops(stack, open_page, shape):
    page = open_page(*shape)
    states = iter(LIFE)
    asked = answer_requests(page, lambda: next(states)[0])
    page.goto(f"{stack.url}/portal/status?session_id=cs_test_life")
    for number, (_, headline, payment, provisioning) in enumerate(LIFE):
        expect(page.get_by_role("heading", level=1)).to_have_text(headline)
        expect(page.locator("#step-payment")).to_have_attribute("data-state", payment)
        expect(page.locator("#step-provisioning")).to_have_attribute("data-state", provisioning)
        look(page, f"status-{number}-{shape[2]}")
        page.clock.run_for(5_100)
    page.clock.run_for(60_000)
    assert len(asked) == len(LIFE)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_after_three_minutes_a_banner_names_the_reference_and_asking_again_clears_it(stack, open_page):
    page = open_page(360, 740)
    now = [CONFIRMING]
    answer_requests(page, lambda: now[0])
    page.goto(f"{stack.url}/portal/status?session_id=cs_test_late")
    expect(page.get_by_text("Last checked at")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    page.clock.fast_forward(181_000)
    banner = page.get_by_role("alert")
    expect(banner).to_contain_text("This takes longer than usual")
    expect(banner).to_contain_text("cs_test_late")
    expect(banner).to_contain_text("help@example.com")
    look(page, "status-banner")
    now[0] = LIFE[-1][0]
    page.get_by_role("button", name="Refresh status").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("All done")
    expect(banner).to_have_count(0)


def test_a_reference_from_outside_is_shown_as_text(stack, open_page):
    page = open_page()
    answer_requests(page, lambda: CONFIRMING)
    page.goto(f"{stack.url}/portal/status?session_id=cs_test_%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    assert page.locator("script:not([src])").count() <= 1
    assert "<script>alert" not in page.content()


def test_the_celebration_does_not_move_where_motion_is_reduced(stack, open_page):
    page = open_page()
    answer_requests(page, lambda: LIFE[-1][0])
    moves = "getComputedStyle(document.querySelector('#step-payment .mark')).animationName"
    for motion, name in [("no-preference", "pop"), ("reduce", "none")]:
        page.emulate_media(reduced_motion=motion)
        page.goto(f"{stack.url}/portal/status?session_id=cs_test_paid")
        expect(page.locator("#status")).to_have_attribute("data-celebrates", "")
        assert page.evaluate(moves) == name
