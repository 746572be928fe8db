"""Against a server that fails as networks and gateways do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from standardwebhooks import Webhook

from tallyhook import (
    ApiError,
    AuthenticationError,
    InvalidRequestError,
    StripeFailedError,
    Tallyhook,
    TallyhookError,
    UnavailableError,
    WebhookVerificationError,
    verify_webhook,
)

Answer = Callable[[BaseHTTPRequestHandler], None]


class Stub:
    """A server that gives the answers in turn, and the requests that it got."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, str, str | None, bytes]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"] or 0))
                stub.requests.append((self.command, self.path, self.headers["idempotency-key"], body))
                (stub.answers.pop(0) if stub.answers else answer(200, {}))(self)

            do_GET = do_POST = do_PATCH = do_PUT = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/base/"
        self.tallyhook = Tallyhook(self.url, "t")


def answer(status: int, body: object, headers: dict[str, str] | None = None) -> Answer:
    def send(handler: BaseHTTPRequestHandler) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"content-length": str(len(text)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(text)

    return send


def broken(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def silent(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    time.sleep(2)


def closing(handler: BaseHTTPRequestHandler) -> None:
    """Closes the connection after the answer without saying so, as an idle connection is closed."""
    answer(200, {"credits": 0})(handler)
    handler.close_connection = True


BUSY = answer(503, {"error": "store_unavailable", "message": "try again"})


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.tallyhook.close()
    stub.server.shutdown()


@pytest.mark.parametrize(
    "failure",
    [BUSY, answer(429, {"message": "Too Many Requests"}), broken, silent, answer(200, b"<html>")],
    ids=["503", "429", "broken connection", "time-out", "no JSON"],
)
def test_the_call_is_repeated_with_the_same_key(stub: Stub, failure: Answer) -> None:
    stub.answers = [failure, failure, answer(200, {"credits": 1})]
    client = Tallyhook(stub.url, "t", timeout_seconds=1.5 if failure is silent else 10)
    assert client.consume("jo", 5)["credits"] == 1
    client.close()
    assert len(stub.requests) == 3
    assert len({key for _, _, key, _ in stub.requests}) == 1
    method, path, key, body = stub.requests[0]
    assert (method, path, body) == ("POST", "/base/users/jo/credits/consume", b'{"amount": 5}')
    assert len(key or "") == 36


def test_two_calls_have_different_keys(stub: Stub) -> None:
    stub.tallyhook.consume("jo", 5)
    stub.tallyhook.consume("jo", 5)
    assert stub.requests[0][2] != stub.requests[1][2]


def test_a_connection_that_was_closed_while_idle_costs_no_retry(stub: Stub) -> None:
    client = Tallyhook(f"http://127.0.0.1:{stub.server.server_port}", "t", retries=0)
    stub.answers = [closing, closing]
    for _ in range(3):
        client.consume("jo", 5)
        time.sleep(0.05)
    client.close()


def test_a_call_gives_up_after_the_retries(stub: Stub) -> None:
    stub.answers = [BUSY] * 4
    with pytest.raises(UnavailableError) as error:
        stub.tallyhook.get_user("jo")
    assert (error.value.code, error.value.status, len(stub.requests)) == ("store_unavailable", 503, 3)
    with pytest.raises(UnavailableError) as error:
        Tallyhook("http://127.0.0.1:9", "t", retries=0).get_user("jo")
    assert error.value.code == "no_connection"


def test_what_fails_again_is_not_repeated(stub: Stub) -> None:
    stripe = {
        "status": 400,
        "type": "invalid_request_error",
        "code": None,
        "param": None,
        "request_id": "req_1",
    }
    stub.answers = [
        answer(400, {"error": "invalid_amount", "message": ""}),
        answer(502, {"error": "stripe_error", "message": "No such price", "stripe": stripe}),
        answer(502, {"error": "no_portal_configuration", "message": "save the portal's settings"}),
        answer(503, {"error": "token_not_configured", "message": ""}),
        answer(412, {"error": "order_changed", "message": ""}),
        answer(307, {}, {"location": "https://elsewhere.example/"}),
        BUSY,
    ]
    calls: list[tuple[type[TallyhookError], Callable[[], Any]]] = [
        (InvalidRequestError, lambda: stub.tallyhook.consume("jo", 0)),
        (StripeFailedError, lambda: stub.tallyhook.checkout("jo", plan="pro")),
        (StripeFailedError, lambda: stub.tallyhook.portal("jo")),
        (AuthenticationError, lambda: stub.tallyhook.get_user("jo")),
        (InvalidRequestError, lambda: stub.tallyhook.update_order("jo", "cs_1", "then", status="DONE")),
        (ApiError, lambda: stub.tallyhook.get_user("jo")),
        (UnavailableError, lambda: stub.tallyhook.update_order("jo", "cs_1", "then", status="DONE")),
    ]
    for kind, call in calls:
        with pytest.raises(kind):
            call()
    assert len(stub.requests) == 7


def test_retry_after_is_kept(stub: Stub) -> None:
    stub.answers = [answer(429, {}, {"retry-after": "1"})]
    started = time.monotonic()
    stub.tallyhook.get_user("jo")
    assert time.monotonic() - started >= 1


def test_wrong_arguments_are_named_and_nothing_is_sent(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TALLYHOOK_URL", raising=False)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("not_configured", Tallyhook),
        ("not_configured", lambda: Tallyhook("tallyhook.example.com", "t")),
        ("invalid_id", lambda: stub.tallyhook.get_user("")),
        ("invalid_key", lambda: stub.tallyhook.consume("jo", 1, key="jöb")),
        ("invalid_key", lambda: stub.tallyhook.consume("jo", 1, key="a\nb")),
    ]
    for code, call in calls:
        with pytest.raises(TallyhookError) as error:
            call()
        assert error.value.code == code
    assert not stub.requests


SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def signed(body: str, at: datetime | None = None, secret: str = SECRET) -> dict[str, str]:
    at = at or datetime.now(UTC)
    return {
        "Webhook-Id": "order_paid_1",
        "Webhook-Timestamp": str(int(at.timestamp())),
        "Webhook-Signature": Webhook(secret).sign("order_paid_1", at, body),
    }


def test_a_signed_webhook_is_read() -> None:
    body = '{"type": "order.paid", "timestamp": "2026-01-05T10:00:06Z", "data": {"order": {"id": "cs_ü"}}}'
    for raw in (body, body.encode()):
        verified = verify_webhook(raw, signed(body), SECRET)
        assert verified.id == "order_paid_1"
        assert verified.message["type"] == "order.paid"
        assert verified.message["data"]["order"]["id"] == "cs_ü"


BODY = '{"type": "order.paid"}'


def test_a_missing_or_wrong_secret_is_not_the_senders_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROVISION_SECRET", raising=False)
    for secret in (None, "", "whsec_", "whsec_ü"):
        with pytest.raises(TallyhookError) as error:
            verify_webhook(BODY, signed(BODY), secret)
        assert error.value.code == "not_configured"
    monkeypatch.setenv("PROVISION_SECRET", SECRET)
    assert verify_webhook(BODY, signed(BODY)).id == "order_paid_1"


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("raw", "headers"),
    [
        (BODY.replace("paid", "free"), signed(BODY)),
        (json.dumps(json.loads(BODY), separators=(",", ":")), signed(BODY)),
        (BODY, signed(BODY, secret="whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")),
        (BODY, {**signed(BODY), "Webhook-Id": "order_paid_2"}),
        (BODY, signed(BODY, datetime.now(UTC) - HOUR)),
        (BODY, signed(BODY, datetime.now(UTC) + HOUR)),
        (BODY, {}),
        (BODY, {**signed(BODY), "Webhook-Signature": "x"}),
        (b"\xff", signed(BODY)),
    ],
    ids=[
        "changed",
        "rewritten",
        "other secret",
        "other id",
        "old",
        "ahead",
        "no headers",
        "strange",
        "no UTF-8",
    ],
)
def test_a_webhook_that_tallyhook_did_not_sign_is_refused(
    raw: str | bytes, headers: dict[str, str]
) -> None:
    with pytest.raises(WebhookVerificationError):
        verify_webhook(raw, headers, SECRET)
