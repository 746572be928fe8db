#!/usr/bin/env python3
"""Runs the commands with which a person deploys, as they are written down, against MiniStack.

The real SAM CLI and the real AWS CLI run the blocks of README.md, docs/deploy.md and docs/operating.md, and
the steps of .github/workflows/deploy.yml, in bash, with Enter at every prompt, and without any region except
the one that they name:

- a first deployment that fails, and "Start over"
- the README's deployment from a release, whose archive a server on this machine has
- the README's deployment from source, then an update as in docs/deploy.md
- the workflow, job by job, with an OIDC token that expires after 300 s
- `sam delete`, then scripts/adopt.py, and a deployment on the old tables

Two things are stand-ins, because they take minutes and have steps of their own: `./check sam` writes a
package without compiling (but counts 12 minutes), and the webhook in it is a script. `stripe trigger` is left
out, and an `aws` command stores the secret that `setup` would store. `aws` replaces the URLs
of execute-api.amazonaws.com in its output by the one at which MiniStack answers.

It needs ministack, aws-sam-translator and boto3, and .check/sam and .check/awscli (`./check deployment`
installs them)."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse

import yaml
from samtranslator.yaml_helper import yaml_parse

import ministack
import release
from shared import ROOT, Handler, functions, serve

BUILD_SECONDS = 720
TOKEN_SECONDS = 300
ACCOUNT = "123456789012"

# The webhook and the API of the package. They answer as scripts/after_deploy.py expects, with the commit of
# the build, and to a request of the app with its token.
FRONT = '''#!/usr/bin/env python3
import base64, hashlib, hmac, json, os, urllib.request
COMMIT, SECRET = {commit!r}, {secret!r}
api = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime/invocation/"
while True:
    with urllib.request.urlopen(api + "next") as call:
        request, event = call.headers["Lambda-Runtime-Aws-Request-Id"], json.loads(call.read())
    status, answer = 400, {{"error": "invalid_signature"}}
    headers = {{name.lower(): value for name, value in event.get("headers", {{}}).items()}}
    if event.get("rawPath", "").startswith("/users/"):
        status, answer = 200, {{"authorization": headers.get("authorization")}}
    elif event.get("rawPath", "").endswith("/health"):
        status, answer = 200, {{"ok": True, "commit": COMMIT}}
    else:
        body = event.get("body") or ""
        body = base64.b64decode(body) if event.get("isBase64Encoded") else body.encode()
        parts = dict(part.split("=", 1) for part in headers.get("stripe-signature", "").split(",") if part)
        mac = hmac.new(SECRET.encode(), parts.get("t", "").encode() + b"." + body, hashlib.sha256).hexdigest()
        if mac == parts.get("v1"):
            status, answer = 200, {{"received": True}}
    done = json.dumps({{"statusCode": status, "body": json.dumps(answer)}}).encode()
    urllib.request.urlopen(urllib.request.Request(api + request + "/response", done)).read()
'''
OTHER = "#!/bin/sh\nexec sleep 60\n"
SECRET = "whsec_of_the_test"
XML = [("content-type", "text/xml")]


def block(document, heading, mark):
    """The shell block below a heading that contains `mark`."""
    text = (ROOT / document).read_text(encoding="utf-8").split(f"\n{heading}\n")[1]
    blocks = re.findall(r"^( *)```sh\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    found = next((lines for _, lines in blocks if mark in lines), None)
    if found is None:
        sys.exit(f"{document} has no shell block with {mark!r} below {heading!r}")
    return found


def stand_in(binary, commit):
    """What is deployed in place of a compiled function."""
    front = FRONT.format(commit=commit, secret=SECRET)
    return front if binary in ("stripe-webhook", "api") else OTHER


def package(folder, commit, broken):
    """What `./check sam` leaves: .aws-sam/build with a template and a folder for each function."""
    template = yaml_parse((ROOT / "template.yaml").read_text(encoding="utf-8"))
    alarms = {name: json.dumps(resource) for name, resource in template["Resources"].items()
              if resource["Type"] == "AWS::CloudWatch::Alarm"}
    ministack.adapt(template)
    if broken:
        template["Resources"].update({name: json.loads(alarm) for name, alarm in alarms.items()})
    build = folder / ".aws-sam" / "build"
    shutil.rmtree(build, ignore_errors=True)
    for name, resource in template["Resources"].items():
        if resource["Type"] == "AWS::Serverless::Function":
            binary = resource.pop("Metadata")["BuildProperties"]["Binary"]
            (build / name).mkdir(parents=True)
            bootstrap = build / name / "bootstrap"
            bootstrap.write_text(stand_in(binary, commit), encoding="utf-8")
            bootstrap.chmod(0o755)
            resource["Properties"]["CodeUri"] = name
    (build / "template.yaml").write_text(json.dumps(template), encoding="utf-8")
    return template


def released(folder):
    """The files of a release with stand-ins for the binaries. Returns the URL of their server."""
    binaries, out = folder / "binaries", folder / "dist"
    binaries.mkdir(parents=True)
    for name in functions():
        (binaries / name).write_text(stand_in(name, commit()), encoding="utf-8")
    (folder / "tallyhook").write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    release.make_functions(out, "arm64", [binaries],
                           lambda text: json.dumps(ministack.adapt(yaml_parse(text))))
    release.make_cli(out, folder / "tallyhook", release.here())
    return serve(functools.partial(QuietFiles, directory=out))


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder."""
    log_message = Handler.log_message


class Clock:
    """The time that the steps would take."""
    seconds = 0


def token_service():
    """GitHub's OIDC provider and AWS's STS, which refuses a token older than 300 s."""

    class Tokens(Handler):
        def do_GET(self):
            self.answer(200, json.dumps({"value": f"issued-{Clock.seconds}"}).encode())

        def do_POST(self):
            form = urllib.parse.parse_qs(self.body().decode())
            token = form["WebIdentityToken"][0]
            if Clock.seconds - int(token.removeprefix("issued-")) > TOKEN_SECONDS:
                self.answer(400, b"<ErrorResponse><Error><Code>ExpiredTokenException</Code>"
                            b"<Message>Token expired</Message></Error></ErrorResponse>", XML)
                return
            result = "AssumeRoleWithWebIdentityResult"
            self.answer(200, f"""<AssumeRoleWithWebIdentityResponse
                xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{result}><Credentials>
                <AccessKeyId>test</AccessKeyId><SecretAccessKey>test</SecretAccessKey>
                <SessionToken>session</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>
                </Credentials><AssumedRoleUser><Arn>{form['RoleArn'][0]}</Arn>
                <AssumedRoleId>id</AssumedRoleId></AssumedRoleUser></{result}>
                </AssumeRoleWithWebIdentityResponse>""".encode(), XML)

    return serve(Tokens)


class Machine:
    """A person's machine or a runner: a folder, an environment, and bash."""

    def __init__(self, folder, port):
        self.folder, self.port = folder, port
        folder.mkdir()
        for name in ("samconfig.toml", "stack-policy.json", "template.yaml"):
            shutil.copy(ROOT / name, folder)
        for name in ("scripts", ".check"):
            (folder / name).symlink_to(ROOT / name)
        tools = folder / "bin"
        tools.mkdir()
        self.shim("bin/aws", f"set -o pipefail\n'{ROOT}/.check/awscli/bin/aws' \"$@\" | "
                  "sed -E 's#https://[a-z0-9]+\\.execute-api[^/\" ]*#'\"${FRONT:-}\"'#g'")
        self.shim("bin/sam", f"exec '{ROOT}/.check/sam/bin/sam' \"$@\"")
        self.shim("check", 'echo "$*" >> .checked; echo "${TALLYHOOK_COMMIT:-}" > .commit')
        self.env = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(folder), "SAM_CLI_TELEMETRY": "0",
                    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "GITHUB_SHA": commit(),
                    "GIT_DIR": git("--absolute-git-dir"), "AWS_PAGER": ""}

    def shim(self, name, text):
        path = self.folder / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        path.chmod(0o755)

    def run(self, script, *options):
        """Runs a script with Enter at every prompt. `options` are those of bash."""
        done = subprocess.run(["bash", *options, "-c", f"{{\n{script}\n}} < <(yes '')"], cwd=self.folder,
                              env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=900, check=False)
        return done.returncode, done.stdout[-6000:]

    def deploys(self, script, broken=False):
        """Runs a block with `./check sam` in it, and packages where the block would compile."""
        before, after = script.split("./check sam", 1)
        after = after.split("\n", 1)[1]
        if before.strip():
            self.must(before)
        self.packages(broken)
        exports = "".join(line + "\n" for line in before.splitlines() if line.startswith("export "))
        return self.run(exports + after, "-e", "-o", "pipefail")

    def packages(self, broken=False):
        Clock.seconds += BUILD_SECONDS
        self.template = package(self.folder, self.env.get("TALLYHOOK_COMMIT") or commit(), broken)

    def must(self, script):
        status, output = self.run(script, "-e")
        if status:
            sys.exit(f"{script}\nended with {status}:\n{output}")
        return output


def commit():
    return git("HEAD")


def git(what):
    return subprocess.run(["git", "rev-parse", what], cwd=ROOT, check=True, capture_output=True,
                          text=True).stdout.strip()


def say(what):
    print(f"    {what}", flush=True)


class Workflow:
    """.github/workflows/deploy.yml, job by job, each on a machine of its own."""

    def __init__(self, folder, port, region, tokens, front):
        self.folder, self.port, self.tokens, self.front = folder, port, tokens, front
        self.workflow = yaml.safe_load((ROOT / ".github/workflows/deploy.yml").read_text(encoding="utf-8"))
        self.values = {"vars.AWS_REGION": region, "vars.AWS_ROLE_ARN": f"arn:aws:iam::{ACCOUNT}:role/deploy",
                       "vars.PARAMETERS": "AlarmEmail=you@example.com", "github.sha": commit(),
                       "inputs.environment || 'default'": "default"}
        self.artifacts = {}

    def fill(self, text):
        return re.sub(r"\$\{\{ (.*?) \}\}", lambda match: self.values[match.group(1)], str(text))

    def run(self):
        for number, (name, job) in enumerate(self.workflow["jobs"].items()):
            machine = Machine(self.folder / f"job{number}", self.port)
            temp = machine.folder / "temp"
            temp.mkdir()
            files = {part: temp / part for part in ("GITHUB_ENV", "GITHUB_PATH")}
            for part, path in files.items():
                path.write_text("")
                machine.env[part] = str(path)
            machine.env["RUNNER_TEMP"] = str(temp)
            machine.env.update({key: self.fill(value) for key, value in job.get("env", {}).items()})
            permissions = job.get("permissions", self.workflow["permissions"])
            if permissions.get("id-token") == "write":
                machine.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"] = "request"
                machine.env["ACTIONS_ID_TOKEN_REQUEST_URL"] = f"{self.tokens}/?v=1"
            machine.env["AWS_ENDPOINT_URL_STS"] = self.tokens
            for step in job["steps"]:
                self.step(machine, step)
                for line in files["GITHUB_ENV"].read_text().splitlines():
                    key, value = line.split("=", 1)
                    machine.env[key] = value
            say(f"job {name}: {len(job['steps'])} steps")

    def step(self, machine, step):
        uses, options = step.get("uses", "").split("@")[0], step.get("with", {})
        if uses == "actions/upload-artifact":
            self.artifacts[options["name"]] = machine.folder / options["path"]
        elif uses == "actions/download-artifact":
            shutil.copy(self.artifacts[options["name"]], machine.folder)
        if "run" not in step:
            return
        if step.get("name") == "Install SAM":
            pin = re.search(r"SAM_TOOLS=\((.*)\)", (ROOT / "check").read_text(encoding="utf-8")).group(1)
            if pin not in step["run"]:
                sys.exit(f"deploy.yml installs another SAM than {pin}")
            machine.env["PATH"] = f"{ROOT}/.check/sam/bin:{machine.env['PATH']}"
            return
        env = dict(machine.env)
        machine.env.update({key: self.fill(value) for key, value in step.get("env", {}).items()})
        machine.env["FRONT"] = self.front()
        status, output = machine.run(self.fill(step["run"]), "-e", "-o", "pipefail")
        if step["run"] == "./check sam":
            machine.packages()
        if status:
            sys.exit(f"deploy.yml, {step.get('name') or step['run']}: ended with {status}\n{output}")
        machine.env = env


def restored(client, person):
    """Damages two users, and restores one of them as docs/operating.md says."""
    def put(user, sort, credits):
        client("dynamodb").put_item(TableName="tallyhook-accounts", Item={
            "pk": {"S": f"user#{user}"}, "sk": {"S": sort}, "credits": {"N": str(credits)}})

    for user in ("jo", "ann"):
        put(user, "account", 500)
        put(user, "entry#signup", 500)
    commands = block("docs/operating.md", "## Restore", "restore copy")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    before, after = re.sub(r"(restore beside) \S+", rf"\1 {now}", commands).split("restore compare", 1)
    person.must(before)
    for user in ("jo", "ann"):
        put(user, "account", 0)                                       # changed
        put(user, "entry#consume#1", -500)                            # newer
        client("dynamodb").delete_item(TableName="tallyhook-accounts",  # gone
                                       Key={"pk": {"S": f"user#{user}"}, "sk": {"S": "entry#signup"}})
    function = commands.splitlines()[0] + "\n"
    output = person.must(f"{function}restore compare{after}")
    if output.count("2 gone, 2 changed, 2 newer") != 1 or output.count("1 gone, 1 changed, 1 newer") != 1:
        sys.exit(f"Restore compared wrongly:\n{output}")
    for user, items in (("jo", {"account": "500", "entry#signup": "500"}),
                        ("ann", {"account": "0", "entry#consume#1": "-500"})):
        found = client("dynamodb").query(TableName="tallyhook-accounts", KeyConditionExpression="pk = :pk",
                                         ExpressionAttributeValues={":pk": {"S": f"user#{user}"}})["Items"]
        found = {item["sk"]["S"]: item["credits"]["N"] for item in found}
        if found != items:
            sys.exit(f"after the restore, {user} has {found}:\n{output}")
    kept = "".join(path.read_text() for path in person.folder.glob("replaced-*.jsonl"))
    if kept.count("\n") != 2 or "entry#consume#1" not in kept:
        sys.exit(f"the file of replaced items has {kept}")
    say("Restore brought one user back and kept what it replaced")


def prints_urls(status, output):
    """Ends the check unless a deployment succeeded and printed what a person needs next."""
    if status:
        sys.exit(f"the deployment of the README failed:\n{output}")
    for name in ("WebhookUrl", "AdminUrl", "ApiUrl"):
        if name not in output:
            sys.exit(f"sam deploy did not print {name}")


def scenario(folder, port):
    readme = block("README.md", "## Deploy", "./check sam")
    region = re.search(r"export AWS_DEFAULT_REGION=(\S+)", readme).group(1)
    client = ministack.clients(port, region)
    person = Machine(folder / "person", port)
    person.env.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")

    status, output = person.deploys(readme, broken=True)
    if not status or "ROLLBACK_COMPLETE" not in output:
        sys.exit(f"the broken package was deployed:\n{output}")
    tables = client("dynamodb").list_tables()["TableNames"]
    say(f"the first deployment failed and left {tables}")
    person.env["AWS_DEFAULT_REGION"] = region  # the block of the README exported it
    person.must(block("docs/deploy.md", "## Start over", "delete-table"))
    if client("dynamodb").list_tables()["TableNames"]:
        sys.exit("Start over left tables")
    say("Start over removed the stack and its tables")

    del person.env["AWS_DEFAULT_REGION"]
    download = block("README.md", "## Deploy", "curl -fsSL")
    download, places = re.subn(r"https://github\.com/\S+/download", released(folder / "release"), download)
    if places != 1:
        sys.exit("the README does not name the release once")
    prints_urls(*person.run(download, "-e", "-o", "pipefail"))
    if not (person.folder / "tallyhook-cli" / "tallyhook").exists():
        sys.exit("the README's commands did not fetch tallyhook")
    say("the README's block deployed a release")
    prints_urls(*person.deploys(readme))
    say("the README's block deployed it from source")

    def front():
        """The URL of the deployed API. MiniStack gets the routes that it does not read itself."""
        resources = {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in
                     client("cloudformation").list_stack_resources(
                         StackName="tallyhook")["StackResourceSummaries"]}
        return ministack.front(ministack.add_routes(client, person.template, resources), port)

    person.env["AWS_DEFAULT_REGION"] = region
    person.env["FRONT"] = front()
    put = next(line for line in readme.splitlines() if line.startswith("put()"))
    after = block("README.md", "## Deploy", "app()").replace("\\\n", " ")
    after = after.replace("https://…", person.env["FRONT"])
    after = "".join(line + "\n" for line in after.splitlines() if not line.startswith("stripe "))
    # What `setup` stores once it has created the endpoint at Stripe.
    stored = ("aws ssm put-parameter --type SecureString --name /tallyhook/stripe-webhook-secret"
              f" --value {SECRET}")
    after, setups = re.subn("^tallyhook setup .*$", stored, after, flags=re.MULTILINE)
    if setups != 1:
        sys.exit("the README does not run setup once")
    # The API of the package is a script, which has no catalog.
    after, pushes = re.subn("^tallyhook catalog push .*$", "", after, flags=re.MULTILINE)
    if pushes != 1:
        sys.exit("the README does not push a catalog once")
    output = person.must(f"{put}\n{after}")
    token = client("ssm").get_parameter(Name="/tallyhook/app-api-token", WithDecryption=True)["Parameter"]
    if output.count(f"Bearer {token['Value']}") != 2:
        sys.exit(f"the app's commands do not send the stored token:\n{output}")
    say("the README's commands of the app reached the API with the stored token")
    policy = json.loads(client("cloudformation").get_stack_policy(StackName="tallyhook")["StackPolicyBody"])
    denied = next(statement for statement in policy["Statement"] if statement["Effect"] == "Deny")
    tables = {f"LogicalResourceId/{name}" for name, resource in person.template["Resources"].items()
              if resource["Type"] == "AWS::DynamoDB::Table"}
    if set(denied["Resource"]) != tables or "Update:Replace" not in denied["Action"]:
        sys.exit(f"the stack policy does not protect {tables}")
    say("the README's stack policy protects the tables")

    guide = block("docs/deploy.md", "## From source", "./check sam")
    guide += block("docs/deploy.md", "## From source", "after_deploy.py")
    guide = guide.replace("https://…", f"{person.env['FRONT']}/webhooks/stripe/health")
    status, output = person.deploys(guide)
    if status:
        sys.exit(f"the update of docs/deploy.md failed:\n{output}")
    say("the guide's block updated and checked it")

    account = {"pk": {"S": "user#1"}, "sk": {"S": "account"}}
    client("dynamodb").put_item(TableName="tallyhook-accounts", Item=account)
    Workflow(folder, port, region, token_service(), front).run()
    say("the workflow deployed it and checked it")

    person.must(".check/sam/bin/sam delete --no-prompts")
    if "tallyhook-accounts" not in client("dynamodb").list_tables()["TableNames"]:
        sys.exit("sam delete deleted the accounts")
    person.packages()
    person.must(block("docs/deploy.md", "## Start over", "adopt.py"))
    kept = client("dynamodb").get_item(TableName="tallyhook-accounts", Key=account)
    if "Item" not in kept:
        sys.exit("the new stack has other tables")
    say("after sam delete, a new stack took the tables with their items")

    restored(client, person)

    status, output = person.run(".check/sam/bin/sam deploy --config-env live")
    if not status or "alarms must reach a person" not in output:
        sys.exit(f"a live deployment without a destination for alarms was not refused:\n{output}")
    say("a live deployment without a destination for alarms is refused")


def main():
    started = time.monotonic()
    with ministack.running() as (folder, port):
        scenario(folder, port)
    print(f"    {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
