"""The errors of this client. `code` is stable, `message` is for a person, `advice` says what to do."""

from __future__ import annotations

from typing import Any, ClassVar


class TallyhookError(Exception):
    """An error of this client."""

    advice: ClassVar[str] = "Read the message."

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class ApiError(TallyhookError):
    """tallyhook answered with an error. `body` is the answer as it came."""

    advice = "The message says what is wrong with the request."

    def __init__(self, status: int, code: str, message: str, body: Any) -> None:
        super().__init__(code, message)
        self.status = status
        self.body = body


class InvalidRequestError(ApiError):
    """400, 412, 413 or 428: the request is wrong. A repetition fails again."""


class AuthenticationError(ApiError):
    """401, or a token that the deployment lacks."""

    advice = "Send the deployment's APP_API_TOKEN as `token`."


class InsufficientCreditsError(ApiError):
    """402: the user has too few credits. Nothing was spent."""

    advice = "Offer a pack or a larger plan: `checkout`."


class NotFoundError(ApiError):
    """404: no such user, order, hold, spend or session."""

    advice = "`create_user` creates a user; other ids come from earlier answers."


class ConflictError(ApiError):
    """409: the request contradicts an earlier one, or the state of the user."""


class AlreadySubscribedError(ConflictError):
    """409 `already_subscribed`: the user has a subscription, and changes the plan in the billing portal."""

    advice = "Redirect the customer to `portal_url`."

    @property
    def portal_url(self) -> str | None:
        """Where to send the customer; None if Stripe made no portal session."""
        url: str | None = self.body.get("portal_url")
        return url


class StripeFailedError(ApiError):
    """502: Stripe refused or failed. `message` is Stripe's."""

    advice = "Read the message; `body['stripe']['request_id']` finds the call at Stripe."


class UnavailableError(TallyhookError):
    """429, 5xx, a time-out or no connection, also after the retries. The request may have taken effect."""

    advice = "Repeat the call later, with the same `key`: it takes effect once."

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(code, message)
        self.status = status


class WebhookVerificationError(TallyhookError):
    """A webhook that tallyhook did not sign, or that is too old. Answer 400 and do nothing."""

    advice = "Pass the raw body, all headers, and PROVISION_SECRET."

    def __init__(self, message: str) -> None:
        super().__init__("invalid_webhook", message)


class HoldCommitError(TallyhookError):
    """The job of `with_hold` is done, but its credits could not be taken.

    `result` is what the job returned, `__cause__` why. Deliver the result or not, and try
    `commit_hold(user, hold, used)` again.
    """

    advice = "`result` has the job's result; call `commit_hold` again."

    def __init__(self, code: str, hold: str, used: int, result: Any) -> None:
        super().__init__(code, f"the job is done, but {used} credits of {hold} could not be taken")
        self.hold = hold
        self.used = used
        self.result = result


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    402: InsufficientCreditsError,
    404: NotFoundError,
    409: ConflictError,
    412: InvalidRequestError,
    413: InvalidRequestError,
    428: InvalidRequestError,
    502: StripeFailedError,
}


def error_of(status: int, body: Any) -> ApiError | UnavailableError:
    """The error for an answer that is not 2xx."""
    known = body if isinstance(body, dict) else {}
    code = str(known.get("error") or f"http_{status}")
    message = str(known.get("message") or f"tallyhook answered {status}")
    if is_passing(status, code):
        return UnavailableError(code, message, status)
    kind = _BY_STATUS.get(status, ApiError)
    if code == "already_subscribed":
        kind = AlreadySubscribedError
    elif code == "token_not_configured":
        kind = AuthenticationError
    return kind(status, code, message, body)


def is_passing(status: int, code: str) -> bool:
    """Whether the same request may succeed later. A gateway's answer has no code of tallyhook.

    Of Stripe's failures (502) the API has already repeated those that pass.
    """
    return status == 429 or (status >= 500 and code in ("store_unavailable", "busy", f"http_{status}"))
