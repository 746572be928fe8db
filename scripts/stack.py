"""The local stack as a child process, and the checks of the scripts that use it.

The scripts know the commands, routes and sample events of the documentation, and nothing of the code.
"""

import hashlib
import hmac
import json
import os
import pathlib
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from shared import ROOT, TARGET, free_port

try:
    import stripe
except ImportError:
    stripe = None

PRO, PACK, SIGNUP = 5000, 1000, 500  # of catalog.toml

passed, failed = 0, 0


def check(what, holds, seen=""):
    """Prints one line and counts it. A failure does not stop the run: later lines help to explain it."""
    global passed, failed
    if holds:
        passed += 1
    else:
        failed += 1
    print(f"  {'ok  ' if holds else 'FAIL'} {what}" + ("" if holds else f": {seen}"), flush=True)
    return holds


def eventually(what, expected, look, seconds):
    """Checks that `look()` becomes `expected` within `seconds`, and prints how long it took."""
    started = time.monotonic()
    while True:
        seen = look()
        took = time.monotonic() - started
        if seen == expected:
            return check(f"{what} ({took:.1f} s)", True)
        if took > seconds:
            return check(what, False, f"{seen} instead of {expected} after {seconds:.0f} s")
        time.sleep(0.05)


def stays(what, expected, look, seconds=2.0):
    """Checks that `look()` is `expected` for all of `seconds`."""
    end = time.monotonic() + seconds
    while (seen := look()) == expected:
        if time.monotonic() > end:
            return check(what, True)
        time.sleep(0.1)
    return check(what, False, f"{seen} instead of {expected}")


def run(checks):
    """Runs the checks of a script, prints their counts, and ends the process with 1 if one failed."""
    try:
        checks()
    except (NoStack, subprocess.SubprocessError) as error:
        check("the stack starts", False, error)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


class NoStack(Exception):
    """The stack does not answer."""


class Stack:
    """The local stack in a process group of its own, with its data in a temporary folder.

    `real_binaries` runs the compiled functions instead of the handlers inside the stack. Call `build` first.
    `binaries` is a folder of compiled functions, which are run as they are. `catalog` is another file than
    catalog.toml.
    """

    def __init__(self, real_binaries=False, port=None, aws_port=None, binaries=None, catalog=None):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tallyhook-"))
        self.log = self.folder / "output.log"
        self.port, self.aws_port = port or free_port(), aws_port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.real_binaries, self.binaries, self.catalog = real_binaries, binaries, catalog
        self.process = None

    def build(self):
        subprocess.run(["cargo", "build", *(["--bins"] if self.real_binaries else ["--bin", "tallyhook"])],
                       cwd=ROOT, check=True)

    def start(self, seconds=60):
        command = [TARGET / "debug" / "tallyhook", "--port", str(self.port), "--aws-port", str(self.aws_port)]
        command += ["--data", self.folder / "data", *(["--real-binaries"] if self.real_binaries else [])]
        command += ["--binaries", self.binaries] if self.binaries else []
        command += ["--catalog", self.catalog] if self.catalog else []
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            if self.process.poll() is not None:
                raise NoStack(f"{shlex.join(map(str, command))} ended with {self.process.returncode}")
            try:
                if request("GET", self.url + "/webhooks/stripe/health", seconds=2)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise NoStack(f"the stack did not answer within {seconds:.0f} s")

    def kill(self):
        """kill -9 for the stack and its children."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.kill()
        if (failed or kind) and self.log.exists():
            lines = self.log.read_text(errors="replace").splitlines()[-60:]
            print("The last output of the stack:\n" + "\n".join("    " + line for line in lines))
        shutil.rmtree(self.folder, ignore_errors=True)


def request(method, url, body=None, headers=None, seconds=30):
    """Status and parsed body, also of an error status. Raises OSError if there is no response."""
    call = urllib.request.Request(url, data=body, headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(call, timeout=seconds) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            status, text = refusal.code, refusal.read()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, {"text": text.decode(errors="replace")}


def signature(body, secret, at=None):
    """The signature header, by Stripe's own package if it is installed."""
    at = int(time.time()) if at is None else at
    if stripe is None:
        return f"t={at},v1=" + hmac.new(secret.encode(), f"{at}.{body}".encode(), hashlib.sha256).hexdigest()
    return stripe.WebhookSignature.generate_signature_header(body, secret, at)


class Client:
    """Stripe and the app of one deployment."""

    def __init__(self, url, secret="whsec_local", token="app-local", webhook_url=None):
        self.url, self.secret = url.rstrip("/"), secret
        self.webhook = (webhook_url or url).rstrip("/") + "/webhooks/stripe"
        self.auth = {"authorization": f"Bearer {token}", "content-type": "application/json"}

    def post(self, body, header="sign"):
        """Posts a webhook. `header` is the signature, or None to send none."""
        headers = {"content-type": "application/json; charset=utf-8"}
        if header == "sign":
            header = signature(body, self.secret)
        if header is not None:
            headers["stripe-signature"] = header
        return request("POST", self.webhook, body.encode(), headers)

    def register(self, user):
        return request("PUT", f"{self.url}/users/{user}", b"{}", self.auth)

    def spend(self, user, amount, key):
        headers = {**self.auth, "idempotency-key": key}
        body = json.dumps({"amount": amount}).encode()
        return request("POST", f"{self.url}/users/{user}/credits/consume", body, headers)

    def account(self, user):
        return request("GET", f"{self.url}/users/{user}", headers=self.auth)

    def tier_and_credits(self, user):
        status, account = self.account(user)
        return (account.get("tier"), account.get("credits")) if status == 200 else status

    def ledger(self, user):
        """Every entry of the ledger, or None."""
        entries, cursor = [], ""
        while True:
            status, page = request("GET", f"{self.url}/users/{user}/ledger{cursor}", headers=self.auth)
            if status != 200:
                return None
            entries += page["entries"]
            if not page.get("next"):
                return entries
            cursor = "?next=" + page["next"].replace("#", "%23")


class Customer:
    """The sample events for a user with ids of its own, so that each run has other ones."""

    def __init__(self, name):
        self.user = f"smoke_{name}_{secrets.token_hex(4)}"
        self.mark = "Smoke" + secrets.token_hex(5)

    def event(self, name):
        text = (ROOT / "events" / f"{name}.json").read_text(encoding="utf-8")
        return text.replace("user_123", self.user).replace("TallyHook", self.mark)
