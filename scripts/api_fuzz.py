#!/usr/bin/env python3
"""Sends requests made from openapi.json to the local stack, and judges the answers with schemathesis.

    scripts/api_fuzz.py SECONDS [SEED]

Every check of schemathesis runs on every route of the app. A report fails the step unless a rule below
explains it. The routes of the operator (/admin) are left out: they change what the others read.

It needs schemathesis (`./check api-fuzz` installs it)."""

import base64
import collections
import json
import pathlib
import re
import subprocess
import sys

import stack
from shared import ROOT
from stack import check

OPENAPI = ROOT / "common/service/src/http/api/openapi.json"

# A request may have the form that openapi.json describes and be refused for its content: a name that the
# catalog does not have, a page that no answer gave, fields that exclude each other, a user id that ends like
# a route, a whole number that is written as 5.0 or exceeds 64 bits, a path that is not one of the app's, more
# than a hold has, a quantity or a trial that the plan does not have.
CONTENT = {"exceeds_hold", "invalid_amount", "invalid_body", "invalid_check", "invalid_locale",
           "invalid_metadata", "invalid_next", "invalid_order", "invalid_path", "invalid_quantity",
           "invalid_reference", "invalid_session_id", "invalid_ttl", "no_trial", "reserved_id",
           "unknown_feature", "unknown_name"}


def explained(kind, method, path, status, error):
    """The reason why a report is not a fault, or None."""
    if kind == "RejectedPositiveData" and status == 400 and error in CONTENT:
        return f"valid in form, refused for its content: {error}"
    if kind == "RejectedPositiveData" and status == 402 and error == "insufficient_credits":
        return "more credits than the user has"
    if kind == "RejectedPositiveData" and path == "/portal/status" and status == 400:
        return "a page that says in HTML that the session's id is invalid"
    if kind == "UnsupportedMethodResponse" and method == "PUT" and path.startswith("/users/"):
        # PUT /users/{id} takes the rest of the path as the id, and refuses one that ends like a route.
        if error in ("reserved_id", "invalid_user_id"):
            return f"PUT /users/… names a user: {error}"
    return None


def bytes_of(body):
    return base64.b64decode((body or {}).get("$base64", ""))


def reports(path):
    """Each failed check: its kind, the route, the request and the answer."""
    for line in path.read_text(encoding="utf-8").splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for case, checks in recorder.get("checks", {}).items():
            for each in checks:
                if each["status"] == "failure":
                    yield each["failure_info"]["failure"], recorder["interactions"][case]


def judge(path):
    expected, examples, unexpected = collections.Counter(), {}, {}
    for failure, interaction in reports(path):
        request, response = interaction["request"], interaction["response"] or {}
        where = re.sub(r"^https?://[^/]*", "", request["uri"])
        body, sent = bytes_of(response.get("content")), bytes_of(request.get("body"))[:300]
        try:
            error = json.loads(body).get("error")
        except (ValueError, AttributeError):
            error = None
        status = response.get("status_code")
        reason = explained(failure["type"], request["method"], where.split("?")[0], status, error)
        if reason:
            expected[reason] += 1
            examples.setdefault(reason, f"{request['method']} {where} {sent!r}")
        else:
            what = f"{request['method']} {where} {sent!r}: {failure['message']} {body[:300]!r}"
            unexpected.setdefault((failure["type"], failure["operation"], status, error), what)
    return expected, examples, unexpected


def run(seconds, seed):
    with stack.Stack() as running:
        running.build()
        running.start()
        report = pathlib.Path(running.folder) / "report.ndjson"
        command = [pathlib.Path(sys.executable).parent / "st", "run", OPENAPI, "--url", running.url,
                   "--header", "Authorization: Bearer app-local", "--exclude-path-regex", "^/admin",
                   "--phases", "examples,coverage,fuzzing", "--max-time", str(seconds), "--seed", str(seed),
                   "--suppress-health-check", "all", "--report", "ndjson", "--report-ndjson-path", report,
                   "--no-color"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False, cwd=running.folder)
        # 1 means that there are reports.
        check("schemathesis ran", done.returncode in (0, 1) and report.exists(), done.stdout[-3000:])
        cases = re.search(r"(\d+) generated", done.stdout)
        check("it sent at least 200 requests", cases and int(cases.group(1)) >= 200, done.stdout[-1500:])
        print(f"       {cases and cases.group(1)} requests, seed {seed}")
        expected, examples, unexpected = judge(report)
        for reason, count in sorted(expected.items()):
            print(f"       {count} × {reason}, such as {examples[reason][:200]}")
        for (kind, operation, status, error), what in unexpected.items():
            check(f"{operation}: {kind} ({status}, {error})", False, what)
        check("every other answer is as openapi.json says", not unexpected, f"{len(unexpected)} reports")


if len(sys.argv) not in (2, 3):
    sys.exit(__doc__)
stack.run(lambda: run(int(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else 1))
