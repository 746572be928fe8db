#!/usr/bin/env python3
"""The clients of clients/ and the apps of examples/. Use `./check clients`.

    scripts/clients.py express fastapi …     checks both clients and these apps
    scripts/clients.py --generate            writes the generated types of both clients

The generated types must be those of openapi.json, and the packages must have what an importer needs. The
tests of both clients run against a local stack. Each app is started, a customer uses it, and it receives the
stack's messages, forged ones and duplicates. The JavaScript is built in .check/clients-js.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import urllib.error
import urllib.request
import zipfile
from datetime import datetime, timezone

import jsonschema
import stack
from shared import ROOT, TARGET, Handler, free_port, serve
from stack import Client, Customer, Stack, check, eventually, request
from standardwebhooks import Webhook

TOOLS = pathlib.Path(sys.executable).parent
WORK = ROOT / ".check/clients-js"
OPENAPI = ROOT / "common/service/src/http/api/openapi.json"
TYPESCRIPT = WORK / "clients/typescript"
PYTHON = ROOT / "clients/python"
SECRET = "whsec_" + secrets.token_hex(32)
WAIT = 30
# Generators name the body of a request by its path. These are the names that users of the clients see.
BODIES = {
    ("/checkout-sessions", "post"): "CheckoutOptions",
    ("/users/{id}/orders/{cs}", "patch"): "OrderChange",
    ("/users/{id}/portal", "post"): "PortalOptions",
}
# Each app's command, and what its routes begin with. {port} is the port.
APPS = {
    "express": (["node", "server.js"], ""),
    "fastapi": ([TOOLS / "uvicorn", "main:app", "--port", "{port}", "--log-level", "warning"], ""),
    "django": ([TOOLS / "python", "-B", "app.py", "runserver", "--noreload", "{port}"], ""),
    "nextjs": (["node_modules/.bin/next", "start", "--hostname", "127.0.0.1", "--port", "{port}"], "/api"),
}
# It receives messages and does nothing else: tests/examples/consumer.rs.
RUST = {"rust": ([TARGET / "debug/examples/consumer"], "")}

# Sample events in the order of their times, and a message that each causes.
LIFE = [
    ("customer.subscription.created", "subscription.started"),
    ("invoice.paid", "payment.confirmed"),
    ("checkout.session.completed.pack", "account.updated"),
    ("checkout.session.async_payment_failed", "payment.failed"),
    ("charge.refunded", "refund.applied"),
    ("invoice.paid.renewal", "subscription.renewed"),
    ("checkout.session.completed.pack_5000", "account.updated"),
    ("charge.dispute.created", "dispute.opened"),
    ("customer.subscription.updated.upgrade", "subscription.changed"),
    ("charge.dispute.closed.won", "dispute.closed"),
    ("invoice.payment_action_required", "payment.action_required"),
    ("customer.subscription.updated.past_due", "access.ended"),
    ("customer.subscription.updated.cancel", "subscription.ending"),
    ("customer.subscription.deleted", "subscription.ended"),
    ("customer.subscription.created.trialing", "subscription.started"),
    ("customer.subscription.trial_will_end", "trial.ending"),
    ("checkout.session.completed.order", "order.paid"),
]

# The names that the examples of the documents use.
TS_NAMES = """import { AlreadySubscribedError, InsufficientCreditsError, Tallyhook } from "tallyhook";
import { verifyWebhook } from "tallyhook";

declare const tallyhook: Tallyhook;
declare const model: { summarize(text: string): Promise<{ text: string; tokens: number }> };
declare const job: { id: string };
declare const request: Request;
declare const text: string, id: string, session: string, exportId: string;
declare function redirect(url: string): Response;
declare function welcome(user: string): Promise<void>;
declare function startWork(order: string): Promise<void>;
"""
PYTHON_NAMES = """from typing import Any

from tallyhook import AlreadySubscribedError, InsufficientCreditsError, Tallyhook, verify_webhook

tallyhook: Tallyhook
model: Any
job: Any
request: Any
text: str
id: str
session: str
export_id: str
def redirect(url: str) -> Any: ...
def welcome(user: str) -> None: ...
def start_work(order: str) -> None: ...


"""


def run(*command, cwd=ROOT):
    """Runs a command. Its output is shown if it fails."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed in {cwd}:\n{done.stdout}")
    return done.stdout


# Packages and generated files.


def digest(*folders):
    """A digest of the files that git has or would add below the folders."""
    names = run("git", "ls-files", "-co", "--exclude-standard", *folders).splitlines()
    content = hashlib.sha256()
    for name in sorted(names):
        if (ROOT / name).is_file():
            content.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    return content.hexdigest()


def installed(name, *inputs):
    """Copies the folder `name` to .check, and installs its packages there unless the same ones are."""
    folder, wanted = WORK / name, digest(f"{name}/package-lock.json", *inputs)
    modules = folder / "node_modules"
    for path in folder.glob("*"):
        if path != modules:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    ignored = shutil.ignore_patterns("node_modules", "dist", "build", ".next")
    shutil.copytree(ROOT / name, folder, ignore=ignored, dirs_exist_ok=True)
    stamp = modules / ".installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        # --ignore-scripts: no package may run its own code at its installation.
        run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
        stamp.write_text(wanted)
    return folder


def build_client():
    installed("clients/typescript")
    run("node_modules/.bin/tsc", cwd=TYPESCRIPT)
    run("node_modules/.bin/tsc", "--project", "test", cwd=TYPESCRIPT)


def app_folder(name):
    """The folder in which the app can be started. Those in JavaScript install the client as a package."""
    if name in ("fastapi", "django"):
        return ROOT / "examples" / name
    folder = installed(f"examples/{name}", "clients/typescript")
    if name == "nextjs":
        run("node_modules/.bin/next", "build", cwd=folder)
    return folder


def app_document():
    """openapi.json with only the schemas of the app's routes and messages; bodies of requests are named."""
    document = json.loads(OPENAPI.read_text(encoding="utf-8"))
    schemas = document["components"]["schemas"]
    app = [document["webhooks"]]
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            if route["tags"] == ["admin"]:
                continue
            app.append(route["responses"])
            if name := BODIES.get((path, method)):
                body = dict(route["requestBody"]["content"]["application/json"]["schema"])
                # The clients' methods take the user as their first argument.
                body["properties"] = {key: of for key, of in body["properties"].items() if key != "user_id"}
                body["required"] = [key for key in body.get("required", []) if key != "user_id"]
                schemas[name] = {key: of for key, of in body.items() if key != "examples"}
                app.append({"$ref": f"#/components/schemas/{name}"})
    used = set()
    while app:
        text = json.dumps(app.pop())
        for name in schemas:
            if name not in used and f'"#/components/schemas/{name}"' in text:
                used.add(name)
                app.append(schemas[name])
    document["components"] = {"schemas": {name: schema for name, schema in schemas.items() if name in used}}
    document["paths"] = {}
    del document["webhooks"]
    return document


def generated():
    """The generated file of each client, by where it is committed."""
    with tempfile.TemporaryDirectory() as folder:
        source, ts, py = (pathlib.Path(folder) / name for name in ("openapi.json", "schema.ts", "_schema.py"))
        source.write_text(json.dumps(app_document()), encoding="utf-8")
        run(TYPESCRIPT / "node_modules/.bin/openapi-typescript", source, "--output", ts,
            "--default-non-nullable", "false")
        run(TOOLS / "datamodel-codegen", "--input", source, "--input-file-type", "openapi", "--output", py,
            "--output-model-type", "typing.TypedDict", "--target-python-version", "3.11", "--formatters",
            "builtin", "--disable-timestamp", "--no-use-closed-typed-dict", "--use-field-description",
            "--use-schema-description")
        return {ROOT / "clients/typescript/src/schema.ts": ts.read_bytes(),
                PYTHON / "src/tallyhook/_schema.py": py.read_bytes()}


def fresh():
    print("The generated types")
    for path, content in generated().items():
        check(f"{path.relative_to(ROOT)} is that of openapi.json", path.read_bytes() == content,
              "write it again with ./check clients-generate")
    for lock in ROOT.glob("*/*/package-lock.json"):
        hosts = re.findall(r'"resolved": "(?!file:)', lock.read_text(encoding="utf-8"))
        check(f"{lock.relative_to(ROOT)} names no registry", not hosts, f"{len(hosts)} addresses")


def packages():
    print("The packages")
    listed = json.loads(run("npm", "pack", "--dry-run", "--json", "--ignore-scripts", cwd=TYPESCRIPT))
    package, = listed if isinstance(listed, list) else listed.values()  # npm 11 has a list
    files = {file["path"] for file in package["files"]}
    wanted = {"package.json", "README.md", "LICENSE-MIT", "LICENSE-APACHE", "dist/index.js",
              "dist/index.d.ts"}
    check("npm: ESM, types, licences, and no sources", wanted <= files and not any(
        file.startswith(("src/", "test/", "build/")) for file in files), files)

    with tempfile.TemporaryDirectory() as folder:
        run(TOOLS / "python", "-m", "build", "--no-isolation", "--outdir", folder, PYTHON)
        wheel, = pathlib.Path(folder).glob("*.whl")
        files = set(zipfile.ZipFile(wheel).namelist())
        wanted = {"tallyhook/__init__.py", "tallyhook/_schema.py", "tallyhook/py.typed"}
        licences = {name for name in files if "/licenses/LICENSE-" in name}
        check("PyPI: code, types, licences", wanted <= files and len(licences) == 2, files)
        # The tests and the apps use the wheel.
        run(TOOLS / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--force-reinstall", wheel)
    check("mypy --strict", "Success" in run(TOOLS / "mypy", "--cache-dir", os.devnull, cwd=PYTHON))


def client_tests(url):
    print("The tests of both clients")
    environment = {**os.environ, "TALLYHOOK_URL": url, "APP_API_TOKEN": "app-local"}
    files = TYPESCRIPT.glob("build/*.test.js")
    commands = {
        "typescript": (["node", "--test", "--test-reporter=tap", *files], TYPESCRIPT),
        "python": ([TOOLS / "python", "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"], PYTHON),
    }
    started = {name: subprocess.Popen(command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT) for name, (command, cwd) in commands.items()}
    for name, process in started.items():
        output = process.communicate()[0]
        counts = re.findall(r"^# pass (\d+)|(\d+) passed", output, re.MULTILINE)
        count = "".join(counts[-1]) if counts else "0"
        check(f"{name}: {count} passed", process.returncode == 0 and int(count) > 20, "\n" + output)


def documented():
    """The examples of both READMEs and docs/app-api.md, by the type checkers."""
    print("The examples of the documents")
    pages = ["docs/app-api.md", "clients/typescript/README.md", "clients/python/README.md"]
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    blocks = {language: [block for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
                         if "import" not in block] for language in ("ts", "python")}

    functions = [f"async () => {{\n{block}return undefined;\n}}" for block in blocks["ts"]]
    text = TS_NAMES + "export const blocks = [\n" + ",\n".join(functions) + "\n];\n"
    (TYPESCRIPT / "test/documents.ts").write_text(text, encoding="utf-8")
    run("node_modules/.bin/tsc", "--project", "test", "--noEmit", "--noUnusedLocals", "false",
        "--allowUnreachableCode", "true", cwd=TYPESCRIPT)
    check(f"{len(functions)} in TypeScript", len(functions) > 12)

    functions = [f"async def block{number}() -> Any:\n" + textwrap.indent(block, "    ")
                 for number, block in enumerate(blocks["python"])]
    with tempfile.TemporaryDirectory() as folder:
        page = pathlib.Path(folder) / "documents.py"
        page.write_text(PYTHON_NAMES + "\n\n".join(functions), encoding="utf-8")
        run(TOOLS / "mypy", "--cache-dir", os.devnull, "--config-file", os.devnull, page)
    check(f"{len(functions)} in Python", len(functions) > 12)


# The apps.


class Relay:
    """PROVISION_URL of the stack: keeps each message as it came, and passes it to each app."""

    def __init__(self):
        self.messages, self.targets, self.lock = [], {}, threading.Lock()
        relay = self

        class Receiver(Handler):
            def do_POST(self):
                body = self.body()
                headers = {name.lower(): value for name, value in self.headers.items()
                           if name.lower().startswith("webhook-") or name.lower() == "content-type"}
                with relay.lock:
                    relay.messages.append((body, headers))
                    targets = list(relay.targets.values())
                answers = [request("POST", target, body, headers)[0] for target in targets]
                self.answer(200 if all(answer == 204 for answer in answers) else 500)

        self.url = serve(Receiver) + "/"

    def of(self, user):
        """The messages about a user, with the parsed body."""
        with self.lock:
            parsed = [(body, headers, json.loads(body)) for body, headers in self.messages]
        return [one for one in parsed if one[2]["data"]["user_id"] == user]


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def redirected(url, headers):
    """Status and target of a redirect."""
    try:
        opener = urllib.request.build_opener(NoRedirect)
        with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, None
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.headers["location"]


class App:
    """An app of examples/ as a child process."""

    def __init__(self, name, folder, stack_url, output):
        command, prefix = (APPS | RUST)[name]
        self.name, self.port, self.stack_url = name, free_port(), stack_url
        self.url = f"http://127.0.0.1:{self.port}{prefix}"
        environment = {**os.environ, "TALLYHOOK_URL": stack_url, "APP_API_TOKEN": "app-local",
                       "PROVISION_SECRET": SECRET, "PORT": str(self.port), "NEXT_TELEMETRY_DISABLED": "1"}
        self.output = output / f"{name}.log"
        with open(self.output, "wb") as log:
            command = [str(part).replace("{port}", str(self.port)) for part in command]
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log,
                                            stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if kind:
            print(f"The output of {self.name}:\n{self.output.read_text(errors='replace')}")

    def ask(self, method, path, user=None, body=None):
        headers = {"x-user": user} if user else {}
        if body is not None:
            headers["content-type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        try:
            return request(method, self.url + path, data, headers)
        except OSError as error:
            return 0, {"error": str(error)}

    def redirects(self, path, user):
        return redirected(self.url + path, {"x-user": user})

    def receive(self, body, headers):
        return request("POST", self.url + "/webhooks/tallyhook", body, headers)


def customer(app, relay):
    """A customer uses the app, buys, and the app receives the messages."""
    print(f"The app {app.name}")
    user, client = f"{app.name}_{secrets.token_hex(4)}", Client(app.stack_url)
    account = lambda: client.account(user)[1]
    eventually("it starts", 401, lambda: app.ask("GET", "/me")[0], WAIT)
    check("creates a user", app.ask("POST", "/signup", user) == (200, {"tier": "free", "credits": 500}))

    check("lets the user use a feature", app.ask("POST", "/projects", user, {"name": "a"})[0] == 201)
    status, answer = app.ask("POST", "/projects", user, {"name": "b"})
    check("up to its limit", (status, answer.get("error"), answer.get("limit")) == (402, "limit_reached", 1),
          (status, answer))
    spends = [app.ask("POST", "/exports", user, {"id": "1"}) for _ in range(2)]
    check("spends credits, once for each export", spends == [(200, {"credits": 490})] * 2, spends)
    job = {"id": "1", "text": "one two three four five six"}
    jobs = [app.ask("POST", "/summaries", user, job) for _ in range(2)]
    check("runs an AI job", jobs == [(200, {"summary": "one two three four five"})] * 2, jobs)
    check("which pays once what it used", account()["credits"] == 484, account())
    check("a job that fails", app.ask("POST", "/summaries", user, {"id": "2", "text": " "})[0] == 500)
    check("pays nothing", (account()["available"], account()["held"]) == (484, 0), account())
    client.spend(user, 300, "elsewhere")
    status, answer = app.ask("POST", "/summaries", user, {"id": "3", "text": "a"})
    check("a job without credits does not start",
          (status, answer.get("error")) == (402, "insufficient_credits"), (status, answer))

    status, url = app.redirects("/billing", user)
    check("who bought nothing is led to the checkout", status == 303 and (url or "").endswith("/upgrade"),
          (status, url))
    status, url = app.redirects("/upgrade", user)
    session = re.search(r"cs_test_\w+", url or "")
    if not check("opens the checkout", status == 303 and session, (status, url)):
        return
    receives(app, relay, user, session[0])

    check("the feature follows", app.ask("POST", "/projects", user, {"name": "b"})[0] == 201)
    status, url = app.redirects("/upgrade", user)
    check("a second upgrade leads to the portal", status == 303 and "billing" in (url or ""), (status, url))
    status, url = app.redirects("/billing", user)
    check("opens the portal", status == 303 and "billing" in (url or ""), (status, url))


def consumer(app, relay):
    """A customer buys, and the app receives the messages."""
    print(f"The app {app.name}")
    user, client = f"{app.name}_{secrets.token_hex(4)}", Client(app.stack_url)
    eventually("it starts", 401, lambda: app.ask("GET", "/me")[0], WAIT)
    client.register(user)
    body = json.dumps({"user_id": user, "plan": "pro"}).encode()
    status, answer = request("POST", app.stack_url + "/checkout-sessions", body, client.auth)
    if check("a session is made", status == 200, (status, answer)):
        receives(app, relay, user, answer["session_id"])


def receives(app, relay, user, session):
    """The user pays the session, and the app receives the messages about it, forged ones and duplicates."""
    relay.targets[app.name] = app.url + "/webhooks/tallyhook"
    request("POST", f"{app.stack_url}/local/stripe/pay/{session}")
    seen = lambda: app.ask("GET", "/me", user)[1]
    paid = {"tier": "pro", "credits": 5000, "welcomes": 1}
    eventually("the stack's messages show the purchase", paid, seen, WAIT)

    wanted = {"payment.confirmed", "subscription.started", "account.updated"}
    types = lambda: {parsed["type"] for _, _, parsed in relay.of(user)}
    eventually("they are several", wanted, lambda: wanted & types(), WAIT)
    body, headers, message = next(one for one in relay.of(user) if one[2]["type"] == "payment.confirmed")
    repeated = [app.receive(body, headers)[0] for _ in range(3)]
    check("a duplicate is accepted and ignored", (repeated, seen()) == ([204] * 3, paid), (repeated, seen()))
    other = json.dumps({**message, "data": {**message["data"], "tier": "business", "version": 999}}).encode()
    now = datetime.now(timezone.utc)
    fresh_id = {**headers, "webhook-id": "forged", "webhook-timestamp": str(int(now.timestamp()))}
    signed = lambda secret, text: {
        **fresh_id, "webhook-signature": Webhook(secret).sign("forged", now, text.decode())}
    forged = {
        "changed": (other, headers),
        "under another id": (body, {**headers, "webhook-id": "forged"}),
        "signed with another secret": (other, signed("whsec_" + secrets.token_hex(32), other)),
        "unsigned": (other, {"content-type": "application/json"}),
    }
    for what, (text, with_headers) in forged.items():
        status = app.receive(text, with_headers)[0]
        check(f"a message that is {what} is refused", (status, seen()) == (400, paid), (status, seen()))
    late = json.dumps({**message, "type": "account.updated",
                       "data": {**message["data"], "tier": "free", "version": 0}}).encode()
    status = app.receive(late, signed(SECRET, late))[0]
    check("an older account is ignored", (status, seen()) == (204, paid), (status, seen()))
    del relay.targets[app.name]


def messages(stack_url, relay):
    """Every message, and every payload of docs/app-api.md, is one of openapi.json."""
    print("The messages")
    document = json.loads(OPENAPI.read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(
        {"components": document["components"], "$ref": "#/components/schemas/Message"})
    customer, client = Customer("messages"), Client(stack_url)
    client.register(customer.user)
    for event, kind in LIFE:
        count = lambda: [parsed["type"] for _, _, parsed in relay.of(customer.user)].count(kind)
        before = count()
        client.post(customer.event(event))
        eventually(f"{event} causes {kind}", True, lambda: count() > before, WAIT)
    received = [json.loads(body) for body, _ in relay.messages]
    wrong = [error.message[:300] for message in received for error in validator.iter_errors(message)]
    check(f"{len(received)} messages are as openapi.json says", not wrong, wrong[:3])

    account = relay.of(customer.user)[0][2]["data"]
    names = document["components"]["schemas"]["MessageAccount"]["properties"]
    account = {name: account[name] for name in names}
    text = (ROOT / "docs/app-api.md").read_text(encoding="utf-8")
    block = text.split("compares this block with what it sees. -->\n\n```json\n")[1].split("```")[0]
    shown, decoder = [], json.JSONDecoder()
    while block.strip():
        message, end = decoder.raw_decode(block := block.lstrip())
        data = {**account, **message["data"]}
        shown.append({**message, "timestamp": received[0]["timestamp"], "data": data})
        block = block[end:]
    wrong = {message["type"] for message in shown if not validator.is_valid(message)}
    wrong |= {message["type"] for message in shown
              if {**message["data"]}.keys() - data_fields(document, message["type"])}
    check(f"so are the {len(shown)} payloads of docs/app-api.md", len(shown) > 20 and not wrong, wrong)


def commands(stack_url):
    """The commands of docs/app-api.md, one after the other."""
    print("The commands of docs/app-api.md")
    text = (ROOT / "docs/app-api.md").read_text(encoding="utf-8")
    script = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S))
    count = len(re.findall(r"^(?:app|curl) ", script, re.M))
    script = script.replace("http://127.0.0.1:9000", stack_url)
    script = script.replace("curl -sS", "curl -sS --fail-with-body")
    result = subprocess.run(["bash", "-xeo", "pipefail", "-c", script], text=True, capture_output=True)
    last = "\n".join(result.stderr.splitlines()[-3:] + result.stdout.splitlines()[-1:])
    check(f"each of {count} is answered with success", result.returncode == 0 and count > 25, last)


def data_fields(document, kind):
    """The names of the fields that openapi.json gives the data of a message."""
    schemas = document["components"]["schemas"]
    resolve = lambda schema: schemas[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    message, = (resolve(one) for one in schemas["Message"]["oneOf"]
                if kind in resolve(one)["properties"]["type"]["enum"])
    data = resolve(message["properties"]["data"])
    parts = [resolve(part) for part in data.get("allOf", [data])]
    return {name for part in parts for name in part["properties"]}


def catalog(folder):
    """catalog.toml with the features of examples/README.md."""
    text = (ROOT / "catalog.toml").read_text(encoding="utf-8")
    plan = '[[plan]]\nname = "pro"\n'
    assert text.count(plan) == 1
    text = text.replace(plan, plan + "features = { sso = true, projects = 10 }\n")
    path = folder / "catalog.toml"
    text += '\n[features]\nsso = "switch"\nprojects = "limit"\n\n[default_features]\nprojects = 1\n'
    path.write_text(text, encoding="utf-8")
    return path


def everything(names):
    build_client()
    with concurrent.futures.ThreadPoolExecutor() as pool, tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        # Next.js takes a minute, so it is built meanwhile.
        building = {name: pool.submit(app_folder, name) for name in names}
        fresh()
        packages()
        documented()
        relay = Relay()
        os.environ |= {"PROVISION_URL": relay.url, "PROVISION_SECRET": SECRET, "LOG_LEVEL": "warn"}
        with Stack(catalog=catalog(folder)) as stack:
            stack.start()
            client_tests(stack.url)
            messages(stack.url, relay)
            commands(stack.url)
            for name in names:
                with App(name, building[name].result(), stack.url, folder) as app:
                    customer(app, relay)
            with App("rust", ROOT, stack.url, folder) as app:
                consumer(app, relay)


def main():
    if sys.argv[1:] == ["--generate"]:
        installed("clients/typescript")
        for path, content in generated().items():
            path.write_bytes(content)
    elif sys.argv[1:] and set(sys.argv[1:]) <= APPS.keys():
        stack.run(lambda: everything(sys.argv[1:]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
