#!/usr/bin/env python3
"""The clients of clients/ and the examples of examples/. Use `./check clients`.

    scripts/clients.py generate     writes the generated types of both clients
    scripts/clients.py fresh        fails if they differ from openapi.json
"""

import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".check/clients"
OPENAPI = ROOT / "common/service/src/http/api/openapi.json"
TYPESCRIPT = ROOT / "clients/typescript"
PYTHON = ROOT / "clients/python"
# Generators name the body of a request by its path. These are the names that users of the clients see.
BODIES = {
    ("/checkout-sessions", "post"): "CheckoutOptions",
    ("/users/{id}/orders/{cs}", "patch"): "OrderChange",
    ("/users/{id}/portal", "post"): "PortalRequest",
}


def app_schemas():
    """openapi.json with only the schemas of the app's routes and messages, and the bodies of requests named."""
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


def generate(folder):
    """Writes schema.ts and _schema.py into `folder`."""
    source = folder / "openapi.json"
    source.write_text(json.dumps(app_schemas()), encoding="utf-8")
    subprocess.run([TYPESCRIPT / "node_modules/.bin/openapi-typescript", source, "--output", folder / "schema.ts"],
                   check=True, stdout=subprocess.DEVNULL)
    subprocess.run([TOOLS / "bin/datamodel-codegen", "--input", source, "--input-file-type", "openapi",
                    "--output", folder / "_schema.py", "--output-model-type", "typing.TypedDict",
                    "--target-python-version", "3.11", "--formatters", "builtin", "--disable-timestamp",
                    "--no-use-closed-typed-dict", "--use-field-description", "--use-schema-description"],
                   check=True)
    return {folder / "schema.ts": TYPESCRIPT / "src/schema.ts",
            folder / "_schema.py": PYTHON / "src/tallyhook/_schema.py"}


def main():
    command = sys.argv[1:]
    if command not in (["generate"], ["fresh"]):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for made, committed in generate(pathlib.Path(folder)).items():
            if command == ["generate"]:
                committed.write_bytes(made.read_bytes())
            elif made.read_bytes() != committed.read_bytes():
                sys.exit(f"{committed.relative_to(ROOT)} is out of date: ./check clients-generate writes it again")


if __name__ == "__main__":
    main()
