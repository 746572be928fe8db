#!/usr/bin/env python3
"""Plays recorded objects of other projects as events through the local stack. `./check shapes` runs it.

tests/data/shapes.toml names the lives, and `scripts/shapes.py take` extracts their objects to
$TALLYHOOK_SHAPES. The objects are moved in time, so that the subscription began ten minutes ago, and name a
user in their metadata."""

import itertools
import json
import os
import pathlib
import re
import sys
import tempfile
import time
import tomllib

import shapes
import stack

CATALOG = """[tiers]
free = 0
pro = 1
biz = 2

[policy]
default_tier = "free"
signup_credits = 0

[[plan]]
name = "pro"
tier = "pro"
credits = 1000
prices = ["default", "small-monthly", "price_1Hp1XHK3EYQFZMajbtX6HLnM", "price_1QxPjKRkFC2HFuLWVZblSFLf"]

[[plan]]
name = "biz"
tier = "biz"
credits = 20000
prices = ["small-annual", "price_1RjKp0RkFC2HFuLWFWZyajjK"]

[[pack]]
name = "shirt"
credits = 70
prices = ["price_1ILVZaKXBGcbgpbZQ26kgXWG"]
"""
# The ids that get the user's name as a suffix, so that each user has objects of its own.
IDS = re.compile(r"\b(?:cus|il|in|si|sub)_\w{14,}")
CUSTOMER = re.compile(r"\bcus_\w+")
# Whole numbers in this range (2017 to 2036) are times, which are moved.
TIMES = range(1_500_000_000, 2_100_000_000)
VERSIONS = {"old": "2020-08-27", "new": "2025-10-29.clover"}


def moved(value, seconds):
    if isinstance(value, dict):
        return {key: moved(part, seconds) for key, part in value.items()}
    if isinstance(value, list):
        return [moved(part, seconds) for part in value]
    return value + seconds if type(value) is int and value in TIMES else value


def events_of(life, objects, user):
    """The events of a life, as texts. A change of the subscription is dated at its invoice."""
    things = [(kind, *objects[name]) for kind, name in life["events"]]
    seconds = int(time.time()) - 600 - things[0][2]["created"]
    last = max(thing["created"] for _, _, thing in things)
    for number, (kind, version, thing) in enumerate(things):
        thing = moved(thing, seconds) | {"metadata": {"user_id": user}}
        event = json.dumps({
            "id": f"evt_{user}{number}", "object": "event", "api_version": version, "type": kind,
            "created": last + seconds if kind.endswith("updated") else thing["created"] + number,
            "livemode": False, "pending_webhooks": 1, "request": None, "data": {"object": thing},
        })
        event = IDS.sub(lambda found: found[0] + user, event)
        # In reverse, the customer has an id as a merchant may choose it.
        yield CUSTOMER.sub(f"{user}+shop@example.com", event) if user.endswith("b") else event


def main():
    folder = os.environ.get("TALLYHOOK_SHAPES")
    if not folder:
        sys.exit(print("    left out: lives of recorded objects (no TALLYHOOK_SHAPES)"))
    table = tomllib.loads(shapes.TABLE.read_text(encoding="utf-8"))
    objects = {}
    for source in table["source"]:
        if source["from"] != "corpus":
            found = shapes.load(source, pathlib.Path(), pathlib.Path(folder))
            if found:
                objects[source.get("as", source.get("object"))] = VERSIONS[source["shape"]], found[0]
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as catalog:
        catalog.write(CATALOG)
        catalog.flush()
        os.environ["CATALOG_FILE"] = catalog.name
        with stack.Stack() as here:
            here.start()
            client = stack.Client(here.url)
            ends = {}
            orders = itertools.product(enumerate(table["life"]), (("a", 1), ("b", -1)))
            for (number, life), (letter, step) in orders:
                user = f"u{number}{letter}"
                for event in list(events_of(life, objects, user))[::step]:
                    client.post(event)
                ends[user] = (life["tier"], life["credits"])
                what = life["what"] + (", in reverse" if step < 0 else "")
                stack.eventually(what, ends[user], lambda user=user: ended(client, user), 20)
                if "no_grant" in life:
                    keys = (client, user, f"invoice#{life['no_grant']}{user}")
                    stack.eventually("its entry", ["no_grant"], lambda keys=keys: kinds(*keys), 20)
            stack.stays("all stay as they are", ends, lambda: {user: ended(client, user) for user in ends}, 1)


def ended(client, user):
    """Tier and credits; an account that no event made has neither."""
    seen = client.tier_and_credits(user)
    return ("free", 0) if seen == 404 else seen


def kinds(client, user, key):
    """The kinds of the ledger's entries with this key."""
    return [entry["kind"] for entry in client.ledger(user) or [] if entry["key"] == key]


if __name__ == "__main__":
    stack.run(main)
