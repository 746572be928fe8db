#!/usr/bin/env python3
"""Deploys template.yaml with the compiled functions to MiniStack, an independent AWS emulator, and tests the
deployment.

MiniStack runs the binaries as Lambda does, with its own SQS and DynamoDB. Then:

    scripts/smoke.py --url …           events, duplicates and forgeries through the deployed HTTP API, and
                                       again through the webhook's own URL
    cargo test -p tests conformance    what we rely on in DynamoDB and SQS

It takes the release binary of a function (`./check release`), else its debug binary (`cargo build --bins`).
It needs ministack, aws-sam-translator and boto3 (`./check ministack` installs them). docs/emulators.md lists
how MiniStack differs from AWS, and what this script changes in the template for it."""

import contextlib
import functools
import http.client
import json
import os
import pathlib
import re
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request

import boto3
from botocore.config import Config
from samtranslator.yaml_helper import yaml_parse

import release
import shared
from shared import ROOT, TARGET, free_port

STACK = "tallyhook"
BUCKET = "tallyhook-code"
REGION = "us-east-1"
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
}


def arguments():
    parser = shared.parser(__doc__)
    parser.add_argument("--binaries", type=pathlib.Path, nargs="+",
                        default=[TARGET / "release", TARGET / "debug"],
                        help="folders of the binaries; the first one with a function counts (default: "
                             "release, then debug)")
    parser.add_argument("--keep", action="store_true", help="leave the deployment running until Ctrl-C")
    return parser.parse_args()


def start_ministack(port, folder):
    """Starts it on the loopback address and waits until it answers."""
    env = dict(os.environ, **KEYS, BIND_HOST="127.0.0.1", GATEWAY_PORT=str(port), LAMBDA_EXECUTOR="local")
    env["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    log = open(folder / "ministack.log", "w")
    command = pathlib.Path(sys.executable).parent / "ministack"
    process = subprocess.Popen([command], env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_ministack/health", timeout=2)
            return process
        except urllib.error.HTTPError:
            return process
        except OSError:
            if process.poll() is not None:
                output = (folder / "ministack.log").read_text()[-3000:]
                sys.exit(f"ministack ended with {process.returncode}:\n{output}")
            time.sleep(0.25)
    sys.exit("ministack did not answer within a minute")


@contextlib.contextmanager
def running():
    """MiniStack in an empty folder. Gives the folder and the port."""
    with tempfile.TemporaryDirectory() as folder:
        folder, port = pathlib.Path(folder), free_port()
        process = start_ministack(port, folder)
        try:
            yield folder, port
        except SystemExit as ended:
            if ended.code:
                print((folder / "ministack.log").read_text()[-4000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(30)


def clients(port, region=REGION):
    """The function that makes a client of a service."""
    return functools.partial(boto3.client, endpoint_url=f"http://127.0.0.1:{port}", region_name=region,
                             aws_access_key_id="test", aws_secret_access_key="test",
                             config=Config(retries={"max_attempts": 1}))


def adapt(template):
    """Changes a template for MiniStack. It runs the functions on this machine. It supports no alarm over
    several metrics: each watches its first one. It does not convert a parameter's text to a number."""
    template["Globals"]["Function"]["Architectures"] = [release.ARCHITECTURES[release.arch_here()]]
    for properties in (resource["Properties"] for resource in template["Resources"].values()):
        if "Metrics" in properties:
            first = next(query["MetricStat"] for query in properties.pop("Metrics") if "MetricStat" in query)
            properties.update(first["Metric"], Statistic=first["Stat"], Period=first["Period"])
        for event in properties.get("Events", {}).values():
            scaling = event["Properties"].get("ScalingConfig", {})
            reference = scaling.get("MaximumConcurrency")
            if isinstance(reference, dict):
                scaling["MaximumConcurrency"] = int(template["Parameters"][reference["Ref"]]["Default"])
    return template


def template_for_here(s3, binaries):
    """The template for MiniStack, with the code in S3."""
    template = adapt(yaml_parse((ROOT / "template.yaml").read_text()))
    s3.create_bucket(Bucket=BUCKET)
    functions = []
    for resource in template["Resources"].values():
        if resource["Type"] != "AWS::Serverless::Function":
            continue
        name = resource.pop("Metadata")["BuildProperties"]["Binary"]
        binary = next((folder / name for folder in binaries if (folder / name).exists()), None)
        if binary is None:
            sys.exit(f"{name} is not built: run ./check release first")
        print(f"{name}: {binary}")
        s3.put_object(Bucket=BUCKET, Key=f"{name}.zip", Body=release.zipped(binary.read_bytes(), 1))
        resource["Properties"]["CodeUri"] = f"s3://{BUCKET}/{name}.zip"
        functions.append(name)
    return template, functions


def deploy(client, template, parameters):
    cloudformation = client("cloudformation")
    # Through S3, as `sam deploy` does: a template in the request itself may have at most 51,200 bytes.
    client("s3").put_object(Bucket=BUCKET, Key="template.json", Body=json.dumps(template).encode())
    cloudformation.create_stack(
        StackName=STACK,
        TemplateURL=f"https://s3.us-east-1.amazonaws.com/{BUCKET}/template.json",
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    )
    for _ in range(240):
        stack = cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]
        if not stack["StackStatus"].endswith("IN_PROGRESS"):
            break
        time.sleep(0.5)
    if stack["StackStatus"] != "CREATE_COMPLETE":
        for event in cloudformation.describe_stack_events(StackName=STACK)["StackEvents"]:
            if "FAILED" in event["ResourceStatus"]:
                print(event["LogicalResourceId"], event["ResourceStatus"], event.get("ResourceStatusReason"))
        sys.exit(f"the stack ended as {stack['StackStatus']}")
    resources = cloudformation.list_stack_resources(StackName=STACK)["StackResourceSummaries"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    return {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in resources}, outputs


def function_url(output, port):
    """MiniStack selects a function URL by its host, and serves each at a path too."""
    host, path = re.fullmatch(r"https://([^/]+)(/.*)", output).groups()
    if path != "/webhooks/stripe" or ".lambda-url." not in host:
        sys.exit(f"the output WebhookUrl is {output}")
    return f"http://127.0.0.1:{port}/_aws/lambda-url/{host.split('.')[0]}"


def add_routes(client, template, resources):
    """Adds the routes one by one: SAM writes them into an OpenAPI body, which MiniStack does not import."""
    gateway = client("apigatewayv2")
    api = resources["HttpApi"]
    have = {route["RouteKey"] for route in gateway.get_routes(ApiId=api)["Items"]}
    for logical, resource in template["Resources"].items():
        events = resource["Properties"].get("Events",
                                            {}) if resource["Type"] == "AWS::Serverless::Function" else {}
        routes = [event["Properties"] for event in events.values() if event["Type"] == "HttpApi"]
        if not routes:
            continue
        name = resources[logical]
        arn = client("lambda").get_function(FunctionName=name)["Configuration"]["FunctionArn"]
        target = gateway.create_integration(
            ApiId=api, IntegrationType="AWS_PROXY", IntegrationUri=arn, PayloadFormatVersion="2.0"
        )
        for route in routes:
            method = route.get("Method", "ANY").upper()
            key = f"{'ANY' if method == 'ANY' else method} {route['Path']}"
            if key not in have:
                gateway.create_route(ApiId=api, RouteKey=key,
                                     Target=f"integrations/{target['IntegrationId']}")
    return api


def front(api, port):
    """A proxy that gives the deployed API a URL of its own: MiniStack selects an API by the Host header."""

    class Proxy(shared.Handler):
        def relay(self):
            body = self.body()
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            headers["Host"] = f"{api}.execute-api.localhost:{port}"
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                content = answer.read()
            finally:
                upstream.close()
            own = ("transfer-encoding", "content-length", "connection")
            self.answer(answer.status, content, [each for each in answer.getheaders()
                                                 if each[0].lower() not in own])

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = relay

    return shared.serve(Proxy)


def push_catalog(url, token):
    """Stores the example catalog: without one, the functions park every purchase."""
    request = urllib.request.Request(
        f"{url}/admin/catalog?apply=true&reason=first",
        (ROOT / "catalog.toml").read_bytes(),
        {"authorization": f"Bearer {token}", "content-type": "application/toml"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        print(f"stored the catalog: {answer.status}", flush=True)


def main():
    options = arguments()
    with running() as (_, port):
        run(options, port)


def run(options, port):
    endpoint, client = f"http://127.0.0.1:{port}", clients(port)
    secret, app, admin = (f"whsec_{secrets.token_hex(16)}", secrets.token_hex(16), secrets.token_hex(16))
    template, functions = template_for_here(client("s3"), options.binaries)
    known = template["Parameters"]
    for parameter, value in (("WebhookSecretPath", secret), ("AppTokenPath", app), ("AdminTokenPath", admin)):
        if parameter in known:
            client("ssm").put_parameter(Name=known[parameter]["Default"], Value=value, Type="SecureString")
    started = time.monotonic()
    resources, outputs = deploy(client, template, {"FunctionUrlConcurrency": "10"})
    seconds = time.monotonic() - started
    print(f"deployed {len(resources)} resources with {len(functions)} functions in {seconds:.1f} s",
          flush=True)
    url = front(add_routes(client, template, resources), port)
    print(f"the deployed API answers at {url}, app token {app}", flush=True)
    if options.keep:
        print(f"webhook secret {secret}, admin token {admin}, AWS endpoint {endpoint}; stop it with Ctrl-C",
              flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return
    push_catalog(url, admin)
    smoke = [sys.executable, ROOT / "scripts/smoke.py", "--url", url, "--secret", secret, "--token", app]
    smoke += ["--wait-seconds", "60"]
    for own_url in ([], ["--webhook-url", function_url(outputs["WebhookUrl"], port)]):
        if subprocess.run(smoke + own_url, check=False).returncode:
            sys.exit("the smoke test against MiniStack failed")
    env = dict(os.environ, **KEYS, AWS_ENDPOINT_URL=endpoint)
    tests = ["cargo", "test", "--package", "tests", "--", "conformance"]
    if subprocess.run(tests, cwd=ROOT, env=env, check=False).returncode:
        sys.exit("the conformance suite failed on MiniStack")


if __name__ == "__main__":
    main()
