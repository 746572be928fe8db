"""Against a running stack: TALLYHOOK_URL and APP_API_TOKEN name it."""

from __future__ import annotations

import os
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator

import pytest

from tallyhook import (
    AlreadySubscribedError,
    AuthenticationError,
    ConflictError,
    HeldCredits,
    HoldCommitError,
    InsufficientCreditsError,
    InvalidRequestError,
    NotFoundError,
    Tallyhook,
)

SIGNUP = 500


@pytest.fixture
def tallyhook() -> Iterator[Tallyhook]:
    client = Tallyhook()
    yield client
    client.close()


@pytest.fixture
def user(tallyhook: Tallyhook) -> str:
    return tallyhook.create_user(f"py_{uuid.uuid4()}")["user_id"]


def eventually(look: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not look():
        assert time.monotonic() < end
        time.sleep(0.1)


def pay(tallyhook: Tallyhook, session: str) -> None:
    """Pays a session of the fake Stripe, and waits until an event confirms it."""
    request = urllib.request.Request(
        f"{os.environ['TALLYHOOK_URL']}/local/stripe/pay/{session}", method="POST"
    )
    urllib.request.urlopen(request, timeout=10).close()
    eventually(lambda: tallyhook.setup_status(session)["payment_state"] == "paid")


def test_a_user_is_created_once(tallyhook: Tallyhook, user: str) -> None:
    again = tallyhook.create_user(user)
    assert (again["user_id"], again["tier"], again["credits"]) == (user, "free", SIGNUP)


@pytest.mark.parametrize(
    "odd",
    ["a/b?c#d%2F.", "ü 😀", "a b+c&d=e;f", "..x", " ", ".", "..", "...", "a/../b", "%2E%2E", "\\", "x/."],
)
def test_ids_are_taken_as_they_are(tallyhook: Tallyhook, odd: str) -> None:
    user = odd if not odd.strip(" .") else f"{odd}{uuid.uuid4()}{odd}"
    assert tallyhook.create_user(user)["user_id"] == user
    assert tallyhook.get_user(user)["user_id"] == user
    assert tallyhook.consume(user, 1)["user_id"] == user
    assert tallyhook.ledger(user)["entries"][-1]["kind"] == "signup"


def test_check_answers_for_features_and_credits(tallyhook: Tallyhook, user: str) -> None:
    limit = tallyhook.check(user, feature="projects", used=0)
    assert (limit["allowed"], limit["limit"], limit["because"]) == (True, 1, "default")
    assert not tallyhook.check(user, feature="projects", used=1)["allowed"]
    assert not tallyhook.check(user, feature="sso")["allowed"]
    assert tallyhook.check(user, credits=SIGNUP) == {"allowed": True, "available": SIGNUP}
    assert not tallyhook.check(user, credits=SIGNUP + 1)["allowed"]
    with pytest.raises(InvalidRequestError) as error:
        tallyhook.check(user, feature="ssso")
    assert (error.value.code, error.value.status) == ("unknown_feature", 400)


def test_consume_spends_once_for_each_key(tallyhook: Tallyhook, user: str) -> None:
    for _ in range(2):
        assert tallyhook.consume(user, 10, key="job 1")["credits"] == SIGNUP - 10
    with pytest.raises(ConflictError):
        tallyhook.consume(user, 11, key="job 1")
    tallyhook.consume(user, 10)
    assert tallyhook.consume(user, 10)["credits"] == SIGNUP - 30
    back = tallyhook.refund(user, "job 1", 4)
    assert (back["refunded"], back["credits"]) == (4, SIGNUP - 26)
    with pytest.raises(
        InsufficientCreditsError, match="474 credits are available, 9999 are needed"
    ) as error:
        tallyhook.consume(user, 9999)
    assert error.value.code == "insufficient_credits"
    assert "checkout" in error.value.advice
    assert tallyhook.get_user(user)["credits"] == SIGNUP - 26


def test_the_ledger_comes_page_by_page(tallyhook: Tallyhook, user: str) -> None:
    for _ in range(3):
        tallyhook.consume(user, 1)
    first = tallyhook.ledger(user, limit=3)
    assert len(first["entries"]) == 3
    second = tallyhook.ledger(user, next=first["next"])
    assert ([entry["kind"] for entry in second["entries"]], second["next"]) == (["signup"], None)


def test_with_hold_takes_what_the_job_used(tallyhook: Tallyhook, user: str) -> None:
    def job(hold: HeldCredits) -> str:
        assert tallyhook.get_user(user)["available"] == SIGNUP - 200
        hold.used = 120
        return "summary"

    assert tallyhook.with_hold(user, 200, job) == "summary"
    assert tallyhook.get_user(user)["available"] == SIGNUP - 120
    tallyhook.with_hold(user, 30, lambda hold: None)
    assert tallyhook.get_user(user)["available"] == SIGNUP - 150


def test_with_hold_releases_the_credits_of_a_job_that_fails(tallyhook: Tallyhook, user: str) -> None:
    with pytest.raises(ZeroDivisionError):
        tallyhook.with_hold(user, 200, lambda hold: 1 // 0)
    account = tallyhook.get_user(user)
    assert (account["available"], account["held"]) == (SIGNUP, 0)


def test_with_hold_starts_no_job_that_the_user_cannot_pay(tallyhook: Tallyhook, user: str) -> None:
    with pytest.raises(InsufficientCreditsError):
        tallyhook.with_hold(user, SIGNUP + 1, lambda hold: pytest.fail("the job ran"))


def test_with_hold_charges_a_job_with_a_key_once(tallyhook: Tallyhook, user: str) -> None:
    def run(used: int, key: str, fails: bool = False) -> int:
        def job(hold: HeldCredits) -> int:
            hold.used = used
            if fails:
                raise ValueError("the model failed")
            return used

        return tallyhook.with_hold(user, 200, job, key=key)

    with pytest.raises(ValueError):
        run(50, "a", fails=True)
    assert tallyhook.get_user(user)["available"] == SIGNUP
    for _ in range(2):
        assert run(60, "a") == 60
        assert tallyhook.get_user(user)["available"] == SIGNUP - 60
    assert (run(70, "b"), run(80, "b")) == (70, 80)
    assert tallyhook.get_user(user)["available"] == SIGNUP - 130


def test_with_hold_takes_more_than_was_held_and_else_keeps_the_result(
    tallyhook: Tallyhook, user: str
) -> None:
    def job(hold: HeldCredits) -> str:
        hold.used = used
        return "summary"

    used = 150
    tallyhook.with_hold(user, 100, job)
    assert tallyhook.get_user(user)["available"] == SIGNUP - 150
    used = 9999
    with pytest.raises(HoldCommitError) as error:
        tallyhook.with_hold(user, 100, job)
    assert (error.value.result, error.value.used, error.value.code) == ("summary", 9999, "exceeds_hold")
    tallyhook.commit_hold(user, error.value.hold, 100)
    assert tallyhook.get_user(user)["available"] == SIGNUP - 250


def test_checkout_sells_a_plan_once_and_then_points_to_the_portal(tallyhook: Tallyhook, user: str) -> None:
    session = tallyhook.checkout(user, plan="pro", customer_reference="PO-7")
    unpaid = tallyhook.setup_status(session["session_id"])
    assert (session["mode"], unpaid["payment_state"], unpaid["reference"]) == (
        "subscription",
        "unpaid",
        "PO-7",
    )
    pay(tallyhook, session["session_id"])
    eventually(lambda: tallyhook.get_user(user)["credits"] == 5000)  # they come with an event of their own
    assert tallyhook.get_user(user)["tier"] == "pro"
    assert tallyhook.check(user, feature="projects", used=7)["remaining"] == 3
    with pytest.raises(AlreadySubscribedError) as error:
        tallyhook.checkout(user, plan="business")
    assert (error.value.portal_url or "").startswith("http")
    portal = tallyhook.portal(user, flow="payment_method", return_path="/account")
    assert portal["url"].startswith("http")
    assert portal["flow"] == "payment_method"
    tallyhook.report_provisioning(user, "WELCOME_EMAIL_SENT")
    tallyhook.report_password(user)
    done = tallyhook.setup_status(session["session_id"])
    assert (done["welcome_email_sent"], done["password_state"]) == (True, "set")


def test_an_order_moves_on_by_the_state_that_was_read(tallyhook: Tallyhook, user: str) -> None:
    session = tallyhook.checkout(user, mode="dfy", plan="starter")
    pay(tallyhook, session["session_id"])
    order = tallyhook.get_order(user, session["session_id"])
    moved = tallyhook.update_order(user, order["id"], order["updated_at"], status="IN_PROGRESS")
    assert [step["step"] for step in moved["history"]] == ["NEW", "IN_PROGRESS"]
    with pytest.raises(InvalidRequestError) as error:
        tallyhook.update_order(user, order["id"], "2026-01-05T10:00:06Z", status="DELIVERED")
    assert (error.value.code, error.value.status) == ("order_changed", 412)


def test_the_catalog_and_the_portal_of_a_user_who_never_bought(tallyhook: Tallyhook, user: str) -> None:
    plans = tallyhook.catalog()["plans"]
    assert any(plan["name"] == "pro" and plan["features"]["projects"] == 10 for plan in plans)
    with pytest.raises(ConflictError) as error:
        tallyhook.portal(user)
    assert error.value.code == "no_customer"


def test_errors_have_a_type(tallyhook: Tallyhook) -> None:
    with pytest.raises(NotFoundError):
        tallyhook.get_user(f"py_{uuid.uuid4()}")
    with pytest.raises(AuthenticationError) as error:
        Tallyhook(token="wrong").get_user("jo")
    assert (error.value.code, error.value.status) == ("unauthorized", 401)
