"""Messages of tallyhook to your app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from standardwebhooks import Webhook

from ._errors import WebhookVerificationError
from ._schema import Message


class VerifiedWebhook(NamedTuple):
    """A message that tallyhook signed."""

    id: str
    """The same at every attempt. Ignore an id that you have processed."""
    message: Message
    """`type` tells what `data` has beside the account."""


def verify_webhook(body: bytes | str, headers: Mapping[str, str], secret: str) -> VerifiedWebhook:
    """Verifies a message of tallyhook and returns it.

    `body` is the raw body, as it came: a body that was parsed and written again has another signature.
    `secret` is `PROVISION_SECRET` of the deployment, `whsec_…`. Raises `WebhookVerificationError` if
    tallyhook did not sign it within the last five minutes.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        message = Webhook(secret).verify(body, lower)
    except (
        Exception
    ) as error:  # a bad header makes the library raise others than its own, such as ValueError
        raise WebhookVerificationError(str(error)) from error
    return VerifiedWebhook(lower["webhook-id"], cast(Message, message))
