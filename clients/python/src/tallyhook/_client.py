"""The client of a tallyhook deployment."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Unpack, cast, overload
from urllib.parse import quote, urlencode, urlsplit

from . import _schema as schema
from ._errors import ConflictError, HoldCommitError, TallyhookError, UnavailableError, error_of, is_passing

T = TypeVar("T")
ProvisioningState = Literal[
    "PROVISIONING_STARTED", "WELCOME_EMAIL_SENT", "PROVISIONING_COMPLETED", "PROVISIONING_FAILED"
]

STRIPE_TIMEOUT_SECONDS = 30.0
MAX_WAIT_SECONDS = 5.0
MAX_IDLE = 8


@dataclass
class HeldCredits:
    """The credits that a job of `with_hold` may use."""

    id: str
    amount: int
    expires_at: str
    used: int
    """What the job has used. Set it before the job returns; it starts as `amount`."""


class Tallyhook:
    """The API of a tallyhook deployment. A user id is your own id of the user.

    `url` is the API's address (default: `TALLYHOOK_URL` of the environment), `token` the deployment's
    `APP_API_TOKEN` (default: that variable). An attempt may take `timeout_seconds`, of calls that ask Stripe
    30. After 429, 5xx, a time-out or no connection, a call is repeated `retries` times.

    Threads may share a client.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_seconds: float = 10.0,
        retries: int = 2,
    ) -> None:
        address = urlsplit(_given(url, "url", "TALLYHOOK_URL"))
        if address.scheme not in ("http", "https") or not address.hostname:
            raise TallyhookError("not_configured", "url must begin with https:// or http://")
        self._address = address
        self._token = _given(token, "token", "APP_API_TOKEN")
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._idle: list[http.client.HTTPConnection] = []

    def create_user(self, user: str) -> schema.Account:
        """Creates the user. Idempotent; the first call grants the signup credits."""
        return cast(schema.Account, self._call("PUT", ["users", user]))

    def get_user(self, user: str) -> schema.Account:
        """Reads the user's tier, credits, features, subscriptions and orders."""
        return cast(schema.Account, self._call("GET", ["users", user]))

    @overload
    def check(self, user: str, *, feature: str, used: int = ...) -> schema.FeatureCheck: ...
    @overload
    def check(self, user: str, *, credits: int) -> schema.CreditsCheck: ...
    def check(
        self, user: str, *, feature: str | None = None, used: int | None = None, credits: int | None = None
    ) -> schema.Check:
        """Whether the user may use one more of a feature, or has the credits."""
        query = {"feature": feature, "used": used, "credits": credits}
        return cast(schema.Check, self._call("GET", ["users", user, "check"], query=query))

    def consume(self, user: str, amount: int, *, key: str | None = None) -> schema.Consumed:
        """Spends credits. Raises `InsufficientCreditsError` if the user has too few.

        Calls with the same `key` spend once. Without one each call has its own, which makes this client's
        own retries safe.
        """
        path = ["users", user, "credits", "consume"]
        return cast(schema.Consumed, self._call("POST", path, {"amount": amount}, _idempotent(key)))

    def refund(self, user: str, spend: str, amount: int, *, key: str | None = None) -> schema.GivenBack:
        """Gives credits of a spend back. `spend` is the key of a `consume`, or the id of a hold."""
        path, body = ["users", user, "credits", "refund"], {"spend": spend, "amount": amount}
        return cast(schema.GivenBack, self._call("POST", path, body, _idempotent(key)))

    def ledger(self, user: str, *, limit: int | None = None, next: str | None = None) -> schema.Ledger:
        """One page of the ledger, newest first. Pass `next` of a page to get the following one."""
        query = {"limit": limit, "next": next}
        return cast(schema.Ledger, self._call("GET", ["users", user, "ledger"], query=query))

    def with_hold(
        self,
        user: str,
        amount: int,
        job: Callable[[HeldCredits], T],
        *,
        key: str | None = None,
        ttl_seconds: int = 900,
    ) -> T:
        """Runs `job` with up to `amount` credits held, and takes `hold.used` of them when it has returned.

        If it raises, all are released. With a `key`, the job is charged once, however often it runs with
        that key. More than `amount` is taken if the user has it. If the credits cannot be taken,
        `HoldCommitError` has the job's result.
        """
        opened = self.hold(user, amount, key=key, ttl_seconds=ttl_seconds)
        hold = HeldCredits(opened["hold"], amount, opened["expires_at"], used=amount)
        try:
            result = job(hold)
        except BaseException:
            # The job's error counts. A hold that is not released ends at its expiry.
            try:
                self.release_hold(user, hold.id)
            except TallyhookError:
                pass
            raise
        try:
            self._charge(user, hold)
        except TallyhookError as error:
            raise HoldCommitError(error.code, hold.id, hold.used, result) from error
        return result

    def _charge(self, user: str, hold: HeldCredits) -> None:
        """Takes what a job used. An earlier run of the same job may have committed or released the hold."""
        try:
            self.commit_hold(user, hold.id, hold.used, extend=hold.used > hold.amount)
        except ConflictError as error:
            if error.code == "hold_released":
                if hold.used > 0:
                    self.consume(user, hold.used, key=f"after {hold.id}")
            elif error.code != "hold_committed":
                raise

    def hold(
        self, user: str, amount: int, *, key: str | None = None, ttl_seconds: int = 900
    ) -> schema.Hold:
        """Holds credits for a job. `with_hold` also ends the hold."""
        path, body = ["users", user, "credits", "holds"], {"amount": amount, "ttl_seconds": ttl_seconds}
        return cast(schema.Hold, self._call("POST", path, body, _idempotent(key)))

    def commit_hold(
        self, user: str, hold: str, amount: int, *, extend: bool = False
    ) -> schema.HoldCommitted:
        """Takes `amount` credits of a hold, with `extend` also more than it holds."""
        path, body = ["users", user, "credits", "holds", hold, "commit"], {
            "amount": amount,
            "extend": extend,
        }
        return cast(schema.HoldCommitted, self._call("POST", path, body))

    def release_hold(self, user: str, hold: str) -> schema.HoldReleased:
        """Ends a hold without a spend."""
        path = ["users", user, "credits", "holds", hold, "release"]
        return cast(schema.HoldReleased, self._call("POST", path, {}))

    def checkout(
        self, user: str, *, key: str | None = None, **what: Unpack[schema.CheckoutOptions]
    ) -> schema.CheckoutSession:
        """Opens a checkout: redirect the customer to `url`.

        The same request within an hour gives the same session; a new `key` gives a new one. Raises
        `AlreadySubscribedError` if the user has a subscription.
        """
        body = {**what, "user_id": user}
        headers = {} if key is None else _idempotent(key)
        answer = self._call("POST", ["checkout-sessions"], body, headers, seconds=STRIPE_TIMEOUT_SECONDS)
        return cast(schema.CheckoutSession, answer)

    def catalog(self) -> schema.Catalog:
        """What is sold, with Stripe's amounts: for a page of prices."""
        return cast(schema.Catalog, self._call("GET", ["catalog"], seconds=STRIPE_TIMEOUT_SECONDS))

    def portal(self, user: str, **options: Unpack[schema.PortalOptions]) -> schema.PortalSession:
        """Opens Stripe's customer portal: redirect the customer to `url` at once, and do not store it.

        `flow` opens it for one purpose, such as a new card.
        """
        answer = self._call("POST", ["users", user, "portal"], options, seconds=STRIPE_TIMEOUT_SECONDS)
        return cast(schema.PortalSession, answer)

    def setup_status(self, session: str) -> schema.SetupStatus:
        """How far payment and set-up of a checkout session are."""
        path, query = ["portal", "setup-status"], {"session_id": session}
        return cast(
            schema.SetupStatus, self._call("GET", path, query=query, seconds=STRIPE_TIMEOUT_SECONDS)
        )

    def report_password(self, user: str) -> None:
        """Reports that the user has set a password."""
        self._call("POST", ["portal", "password-set"], {"user_id": user})

    def report_provisioning(self, user: str, state: ProvisioningState) -> None:
        """Reports how far your app has set the user up."""
        self._call("POST", ["portal", "provisioning"], {"user_id": user, "state": state})

    def get_order(self, user: str, order: str) -> schema.OrderWithHistory:
        """Reads an order with its history. `order` is its checkout session, `cs_…`."""
        return cast(schema.OrderWithHistory, self._call("GET", ["users", user, "orders", order]))

    def update_order(
        self, user: str, order: str, updated_at: str, **change: Unpack[schema.OrderChange]
    ) -> schema.OrderWithHistory:
        """Changes an order that was read with this `updated_at`.

        It is not retried: read the order again instead.
        """
        path, headers = ["users", user, "orders", order], {"if-match": updated_at}
        return cast(schema.OrderWithHistory, self._call("PATCH", path, change, headers, retries=0))

    def close(self) -> None:
        """Closes idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _call(
        self,
        method: str,
        path: list[str],
        body: object = None,
        headers: dict[str, str] | None = None,
        *,
        query: dict[str, Any] | None = None,
        seconds: float = 0.0,
        retries: int | None = None,
    ) -> Any:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        target = f"{self._address.path.rstrip('/')}/{'/'.join(map(_segment, path))}"
        target += f"?{urlencode(given)}" if given else ""
        sent = {**(headers or {}), "authorization": f"Bearer {self._token}"}
        data = None
        if body is not None:
            sent["content-type"] = "application/json"
            data = json.dumps(body).encode()
        seconds = max(self._timeout_seconds, seconds)
        attempts = 1 + (self._retries if retries is None else retries)
        for attempt in range(attempts):
            pause = 0.0
            try:
                status, text, pause = self._send(method, target, data, sent, seconds)
                return _read(status, text)
            except UnavailableError:
                if attempt + 1 == attempts:
                    raise
            time.sleep(max(pause, 0.2 * 2**attempt * random.uniform(0.5, 1)))
        raise AssertionError("the last attempt returns or raises")

    def _send(
        self, method: str, target: str, data: bytes | None, headers: dict[str, str], seconds: float
    ) -> tuple[int, bytes, float]:
        """Status, body, and the seconds of Retry-After. After a closed idle connection, tries another."""
        while True:
            try:
                connection, fresh = self._idle.pop(), False
            except IndexError:
                secure = self._address.scheme == "https"
                kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
                connection, fresh = kind(self._address.hostname or "", self._address.port), True
            try:
                connection.timeout = seconds
                if connection.sock is not None:
                    connection.sock.settimeout(seconds)
                connection.request(method, target, data, headers)
                response = connection.getresponse()
                text = response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if isinstance(error, TimeoutError):
                    raise UnavailableError("timeout", f"no answer within {seconds:g} s") from error
                if not fresh:
                    continue
                raise UnavailableError("no_connection", f"{self._address.netloc}: {error}") from error
            if len(self._idle) < MAX_IDLE and not response.will_close:
                self._idle.append(connection)
            else:
                connection.close()
            after = response.getheader("retry-after") or ""
            return response.status, text, min(float(after), MAX_WAIT_SECONDS) if after.isdigit() else 0.0


def _given(value: str | None, argument: str, name: str) -> str:
    found = value or os.environ.get(name)
    if not found:
        raise TallyhookError("not_configured", f"pass {argument} or set {name}")
    return found


def _idempotent(key: str | None) -> dict[str, str]:
    key = str(uuid.uuid4()) if key is None else key
    if not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
        raise TallyhookError("invalid_key", "a key has 1 to 255 ASCII characters")
    return {"idempotency-key": key}


def _segment(text: str) -> str:
    """A path segment. Dots are encoded where proxies would take the segment for a step in the path."""
    if not text:
        raise TallyhookError("invalid_id", "an id must not be empty")
    return quote(text, safe="") if text.strip(".") else "%2E" * len(text)


def _read(status: int, text: bytes) -> Any:
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if 200 <= status < 300:
        if body is None:
            raise UnavailableError("invalid_answer", "the answer is not JSON", status)
        return body
    raise error_of(status, body)
