"""Messages of tallyhook to your app."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple, cast

from standardwebhooks import Webhook

from ._errors import TallyhookError, WebhookVerificationError
from ._schema import Message


class VerifiedWebhook(NamedTuple):
    """A message that tallyhook signed."""

    id: str
    """The same at every attempt. Ignore an id that you have processed."""
    message: Message
    """`type` tells what `data` has beside the account."""


def verify_webhook(
    body: bytes | str, headers: Mapping[str, str], secret: str | None = None
) -> VerifiedWebhook:
    """Verifies a message of tallyhook and returns it.

    `body` is the raw body, as it came: a body that was parsed and written again has another signature.
    `secret` is the deployment's `PROVISION_SECRET`, `whsec_…` (default: that variable of the environment).
    Raises `WebhookVerificationError` if tallyhook did not sign it within the last five minutes.
    """
    try:
        webhook = Webhook(os.environ.get("PROVISION_SECRET", "") if secret is None else secret)
    except Exception as error:  # of the library or of base64
        what = "pass secret or set PROVISION_SECRET: whsec_ and base64"
        raise TallyhookError("not_configured", what) from error
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        message = webhook.verify(body, lower)
    except (
        Exception
    ) as error:  # a bad header makes the library raise others than its own, such as ValueError
        raise WebhookVerificationError(str(error)) from error
    return VerifiedWebhook(lower["webhook-id"], cast(Message, message))
