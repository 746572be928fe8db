#!/usr/bin/env python3
"""Compares our samples and generated lives with events of other projects, path by path.

    scripts/shapes.py check [--binary TALLYHOOK]           `./check shapes` runs it
    scripts/shapes.py types FOLDER [--binary TALLYHOOK]    `./check stripe-types` runs it
    scripts/shapes.py take CLONES FOLDER                   fills FOLDER from clones of public repositories

`check` compares with recorded objects, which are not part of this repository. tests/data/shapes.toml lists
them. They are in the corpus ($TALLYHOOK_CORPUS) or in the folder that `take` filled ($TALLYHOOK_SHAPES). For
each path that the reader in common/core/src/event reads, and for its parents, `check` compares whether the
path exists and which type it has. A line of an invoice is compared with recorded lines of the same kind.

`types` compares with Stripe's own TypeScript library, in one release for each API version: which types a path
may have, and whether it may be absent. FOLDER has a folder for each API version, with `stripe` and
`typescript` in its node_modules.

A difference is an error unless a table in tests/data explains it. A line there that explains nothing is an
error too."""

import collections
import fnmatch
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import shared
from shared import ROOT

READER = ROOT / "common/core/src/event"
TABLE = ROOT / "tests/data/shapes.toml"
EXPLAINED = ROOT / "tests/data/shapes-differences.txt"
SITUATIONS = "abcdefghijklmnopqrstuw"
TYPES_EXPLAINED = ROOT / "tests/data/shapes-types-differences.txt"

# Which part of an object a variable of the reader stands for.
VARIABLES = {
    "invoice": {"object": "", "line": "lines.data[]", "payment": "payments.data[]",
                "chosen": "payments.data[]", "part": "lines.data[].discount_amounts[]"},
    "subscription": {"object": "", "item": "items.data[]", "entry": "items.data[]",
                     "before": "<previous_attributes>"},
    "checkout_session": {"object": "", "line": "line_items.data[]"},
    "invoice_payment": {"object": ""},
    "charge": {"object": ""},
    "refund": {"object": ""},
    "dispute": {"object": ""},
    "customer": {"object": ""},
}
OBJECTS = {"checkout_session": "checkout.session"}
PRICED = {"invoice": "lines.data[]", "subscription": "items.data[]", "checkout.session": "line_items.data[]"}
READS = re.compile(r'\b(\w+)\s*\.\s*'
                   r'(?:id|id_text|text|owned|flag|amount|count|time|word|names|has|list|entries|metadata)'
                   r'\(\s*"([a-z_.]+)"')
FIRST = re.compile(r'\b(\w+)\s*\.\s*first_id\(\s*&\[([^\]]*)\]')
LISTS = {"lines", "items", "line_items", "payments"}
TYPES = {str: "text", bool: "flag", int: "number", float: "number", dict: "object", list: "list",
         type(None): "null"}


def read_paths():
    """The paths that the reader reads, by Stripe's name of the object."""
    paths = {}
    for module, variables in VARIABLES.items():
        text = (READER / (module + ".rs")).read_text(encoding="utf-8").split("#[cfg(test)]")[0]
        found = set()
        for variable, path in READS.findall(text):
            found.add((variable, path))
        for variable, many in FIRST.findall(text):
            found |= {(variable, path) for path in re.findall(r'"([a-z_.]+)"', many)}
        unknown = {variable for variable, _ in found} - set(variables)
        if unknown:
            sys.exit(f"scripts/shapes.py does not know what {sorted(unknown)} of {module}.rs stands for")
        name = OBJECTS.get(module, module)
        paths[name] = {join(variables[variable], path + (".data" if path in LISTS else ""))
                       for variable, path in found}
    text = (READER / "price.rs").read_text(encoding="utf-8")
    price = set(re.findall(r'"((?:pricing|price|plan)[a-z_.]*)"', text))
    for name, at in PRICED.items():
        paths[name] |= {join(at, path) for path in price}
    for name, found in paths.items():
        if len(found) < 2:
            sys.exit(f"scripts/shapes.py found no paths of {name} in the reader")
        for path in list(found):
            parts = path.split(".")
            found |= {".".join(parts[:n]) for n in range(1, len(parts))}
    return paths


def join(at, path):
    return f"{at}.{path}" if at else path


def line_kind(line, of_subscription):
    parent = line.get("parent") or {}
    details = parent.get(parent.get("type")) or {}
    if details.get("proration") or line.get("proration"):
        return "proration"
    if parent.get("type", line.get("type")) in ("subscription_item_details", "subscription"):
        return "period"
    return "once beside a subscription" if of_subscription else "once"


def is_of_subscription(invoice):
    return bool(invoice.get("subscription") or (invoice.get("parent") or {}).get("subscription_details"))


class Shape:
    """Which paths an object has, with the types of each. Several objects can be added."""

    def __init__(self, paths):
        self.paths, self.types = paths, collections.defaultdict(set)

    def add(self, thing, at="", general="", invoice=None):
        for name in {path[len(join(general, "")):].split(".")[0].split("[")[0]
                     for path in self.paths if path.startswith(join(general, "") if general else "")}:
            if not name or name.startswith("<"):
                continue
            path, known = join(at, name), join(general, name)
            if name not in thing:
                self.types[path].add("absent")
                continue
            value = thing[name]
            self.types[path].add(TYPES[type(value)])
            if isinstance(value, dict):
                self.add(value, path, known, thing if name == "lines" else invoice)
            elif isinstance(value, list):
                for entry in value:
                    if not isinstance(entry, dict):
                        continue
                    kind = line_kind(entry, is_of_subscription(invoice)) if at == "lines" and invoice else ""
                    self.add(entry, f"{path}[{kind}]", known + "[]")
        return self


def differences(ours, theirs, every):
    """The paths that the recorded object has and ours lacks, and those of ours that no recorded object of
    this kind has with this type: `every` has all of them, or is empty if some are not on this machine. A part
    that is missing as a whole is reported once."""
    found = []
    for path in sorted(ours):
        mine, other, any_other = ours[path], theirs.get(path), every.get(path)
        missing = mine == {"absent"} and other and "absent" not in other
        invented = any_other and not mine & any_other
        if missing or invented:
            found.append((path, "/".join(sorted(mine)), "/".join(sorted(other if missing else any_other))))
    return found


def previous_differences(ours, theirs):
    """Attributes that both updates changed, with other types."""
    ours, theirs = ours.get("previous_attributes") or {}, theirs.get("previous_attributes") or {}
    for name in sorted(set(ours) & set(theirs)):
        mine, other = TYPES[type(ours[name])], TYPES[type(theirs[name])]
        if mine != other and "null" not in (mine, other):
            yield f"previous_attributes.{name}", mine, other


def objects(value, ident):
    if isinstance(value, dict):
        if value.get("id") == ident:
            yield value
        for part in value.values():
            yield from objects(part, ident)
    elif isinstance(value, list):
        for part in value:
            yield from objects(part, ident)


def source_file(source, folder):
    return folder / source["from"].replace("/", "__") / (source.get("as", source.get("object", "")) + ".json")


def load(source, corpus, folder):
    """The recorded object, and the `data` of its event; None if it is not on this machine."""
    path = source_file(source, folder)
    if source["from"] == "corpus":
        path = corpus / "stripe-events" / source["path"]
    if not path.is_file():
        return None
    whole = json.loads(path.read_text(encoding="utf-8"))
    data = whole.get("data", whole)
    thing, before = (data["object"], data) if isinstance(data["object"], dict) else (whole, {})
    # A caller may ask for more than an event has.
    return {key: it for key, it in thing.items() if key not in source.get("expanded", [])}, before


def take(clones, folder):
    """Extracts the objects of the table from clones of the repositories."""
    import base64
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    yaml.add_constructor("!binary", lambda _, node: base64.b64decode(node.value).decode(), Loader=loader)
    missing = set()
    for source in tomllib.loads(TABLE.read_text(encoding="utf-8"))["source"]:
        if source["from"] == "corpus":
            continue
        clone = next((path for path in clones.iterdir() if path.name in (
            source["from"].replace("/", "+"), source["from"].split("/")[1])), None)
        if clone is None:
            missing.add(source["from"])
            continue
        clone = clone / "repo" if (clone / "repo").is_dir() else clone
        text = subprocess.run(["git", "-C", clone, "show", f"{source['commit']}:{source['path']}"],
                              capture_output=True, check=True, text=True).stdout

        def restored(text, words=source.get("placeholders", {})):
            for word, letters in words.items():
                text = text.replace(f"<{word}>", letters)
            return text

        if source["path"].endswith(".yml"):
            # A VCR cassette. Some words in it are replaced by placeholders, also inside of names.
            bodies = yaml.load(restored(text), loader)["http_interactions"]
            bodies = [restored(it["response"]["body"].get("string") or "") for it in bodies]
            bodies = [json.loads(body) for body in bodies if source["object"] in body]
            found = [it for body in bodies for it in objects(body, source["object"])]
            found = [it for it in found if source.get("holds", "") in json.dumps(it)][-1]
        elif source["path"].endswith("fixtures3.json"):
            found = json.loads(text)["resources"][source["object"]]
        else:
            found = in_text(text, source["object"])
        path = source_file(source, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print("took", path)
    for name in sorted(missing):
        print("no clone of", name)
    return 1 if missing else 0


def in_text(text, ident):
    """The first object with this id in the JSON of a text, or the event that has it; if no object has the id,
    the first JSON object. The JSON may be in comments that start with #, or have such that start with //."""
    text = re.sub(r"^\s*(//.*$|# ?)", "", text, flags=re.M)
    text = re.sub(r",(\s*[}\]])", r"\1", text)
    first, at = None, text.find("{")
    while at >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
            named = next(objects(value, ident), None)
            if named:
                return value if value.get("object") == "event" else named
            first = first or value
        except ValueError:
            end = at + 1
        at = text.find("{", end)
    if first is None or f'"{ident}"' in text:
        raise ValueError(f"the JSON of {ident} cannot be read")
    return first


def same_shape(thing, old):
    """The kind of an object, and whether its shape is old: only three kinds changed with 2025-03-31.basil."""
    return thing["object"], old and thing["object"] in ("invoice", "subscription", "charge")


def samples(name, old):
    path = ROOT / "events" / ("old" if old else "") / (name + ".json")
    return json.loads(path.read_text(encoding="utf-8"))


def judge_events():
    """Events of the judge's random lives, by shape."""
    sys.path.insert(0, str(ROOT / "tests/judge"))
    import random
    import lives

    for seed in range(400):
        rnd = random.Random(seed)
        made = lives.Life(rnd, lives.catalog(rnd), 1_790_000_000, False).play()
        for step in made.steps:
            for event in step.get("send", []):
                yield made.old, event


def life_events(binary):
    """Events of the random lives of local/src/life, by shape. `fuzz-order` sends them to a server that keeps
    them."""
    kept = []

    class Server(shared.Handler):
        def do_POST(self):
            kept.append(json.loads(self.body()))
            self.answer(200, b"{}")

        def do_GET(self):
            known = self.path == "/local/status"
            self.answer(200 if known else 404, b'{"at_rest": true, "queues": []}' if known else b"{}")

    subprocess.run([binary, "fuzz-order", "--cases", "60", "--seed", "1", "--url", shared.serve(Server)],
                   check=True, stdout=subprocess.DEVNULL)
    if len(kept) < 1000:
        sys.exit(f"fuzz-order sent only {len(kept)} events")
    return [(event["api_version"] < "2025-03-31", event) for event in kept]


def generated(events, paths):
    shapes = {}
    for old, event in events:
        thing = event["data"]["object"]
        if thing["object"] in paths and not event["type"].startswith("customer.deleted"):
            shapes.setdefault(same_shape(thing, old), Shape(paths[thing["object"]])).add(thing)
    return shapes


def generators(binary, left_out):
    yield "judge", judge_events()
    if binary:
        yield "life", life_events(binary)
    else:
        left_out.append("the lives of local/src/life (no --binary)")


def report(found, table, is_complete):
    """The differences that are not explained, and the explanations that explain nothing."""
    problems, explained, used = [], set(), set()
    for line in table.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            *known, reason = (part.strip() for part in line.split("|"))
            explained.add(tuple(known))
            if len(reason) < 10:
                problems.append(f"no reason: {line}")
    for difference in sorted(set(found)):
        reasons = {it for it in explained if all(map(fnmatch.fnmatchcase, difference, it))}
        used |= reasons
        if not reasons:
            problems.append(" | ".join(difference))
    if is_complete:
        problems += [f"explains nothing: {' | '.join(it)}" for it in sorted(explained - used)]
    return problems


def types(folder, binary):
    """Every sample of a shape and every generated object must have the types of every version of it."""
    paths = {kind: sorted(path for path in found if "<" not in path) for kind, found in read_paths().items()}
    versions = sorted(path.name for path in folder.iterdir() if (path / "node_modules/stripe").is_dir())
    if not versions:
        sys.exit(f"{folder} has no folder with node_modules/stripe")
    left_out, shapes, found = [], {}, []
    for old in (False, True):
        for path in sorted((ROOT / "events" / ("old" if old else "")).glob("*.json")):
            thing = json.loads(path.read_text(encoding="utf-8"))["data"]["object"]
            if thing["object"] in paths:
                name = ("old/" if old else "") + path.stem
                shapes[name, *same_shape(thing, old)] = Shape(set(paths[thing["object"]])).add(thing)
    for who, events in generators(binary, left_out):
        for (kind, old), shape in generated(events, {kind: set(it) for kind, it in paths.items()}).items():
            shapes[f"{who}:{'old/' if old else ''}{kind}", kind, old] = shape
    compared = 0
    for version in versions:
        script = ROOT / "scripts/stripe_types.mjs"
        run = subprocess.run(["node", script, folder / version], input=json.dumps(paths), capture_output=True,
                             check=True, text=True)
        allowed = json.loads(run.stdout)
        for (who, kind, old), shape in shapes.items():
            has_old = same_shape({"object": kind}, True)[1]
            if kind not in allowed or has_old and old != (version < "2025-03-31"):
                continue
            compared += 1
            for path, mine in shape.types.items():
                path = re.sub(r"\[[^]]*\]", "[]", path)
                known = allowed[kind].get(path, ["absent", *mine])
                for one in mine - set(known):
                    if known or one != "absent":
                        found.append((f"{version}:{who}", path, one, "/".join(known)))
    problems = report(found, TYPES_EXPLAINED, not left_out)
    print(f"    {compared} comparisons with {', '.join(versions)}; {len(set(found))} differences")
    for name in left_out:
        print(f"    left out: {name}")
    print("".join(f"    FAIL {problem}\n" for problem in problems), end="")
    return 1 if problems else 0


def check(binary):
    corpus = pathlib.Path(os.environ.get("TALLYHOOK_CORPUS", ROOT.parent / "shared/corpus"))
    folder = os.environ.get("TALLYHOOK_SHAPES")
    required = os.environ.get("TALLYHOOK_REQUIRE_CORPUS") == "1"
    paths = read_paths()
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    problems, left_out, recorded, found, compared = [], [], [], [], 0
    every = {}
    for source in table["source"]:
        name = f"{source['from']}:{source.get('object', source['path'])}"
        got = load(source, corpus, pathlib.Path(folder or "/nonexistent"))
        if got is None:
            left_out.append(name)
            if required and (source["from"] == "corpus" or folder):
                problems.append(f"{name} is missing")
            continue
        recorded.append((source, *got))
        if not source.get("documented") and not source.get("superset"):
            shape = same_shape(got[0], source["shape"] == "old")
            every.setdefault(shape, Shape(paths[got[0]["object"]])).add(got[0])
    is_complete = not left_out
    for source, thing, data in recorded:
        kind, old = thing["object"], source["shape"] == "old"
        theirs = Shape(paths[kind]).add(thing).types
        union = every[same_shape(thing, old)].types if is_complete else {}
        for sample in source["ours"]:
            ours = samples(sample, old)
            mine = Shape(paths[kind]).add(ours["data"]["object"]).types
            mine = {path: types for path, types in mine.items()
                    if path.split(".")[0] not in source.get("expanded", [])}
            who = ("old/" if old else "") + sample
            found += [(who, *it) for it in differences(mine, theirs, union)
                      if not source.get("superset") or it[1] != "absent"]
            found += [(who, *it) for it in previous_differences(ours["data"], data)]
            compared += 1
    for who, events in generators(binary, left_out):
        for (kind, old), shape in generated(events, paths).items():
            if (kind, old) in every:
                union = every[kind, old].types
                name = f"{who}:{'old/' if old else ''}{kind}"
                found += [(name, *it) for it in differences(shape.types, union, union if is_complete else {})]
                compared += 1
    problems += report(found, EXPLAINED, not left_out)
    situations = {source["situation"] for source in table["source"]}
    missing = {it["situation"]: it["why"] for it in table["missing"]}
    named = situations | set(missing)
    problems += [f"no source for the situation {it}" for it in SITUATIONS if it not in named]
    problems += [f"the situation {it} has a source" for it in missing if it in situations]
    print(f"    {compared} comparisons in {len(situations)} situations; {len(set(found))} differences")
    for it, why in missing.items():
        print(f"    no recorded object for {it}, {why}")
    for name in left_out:
        print(f"    left out: {name}")
    print("".join(f"    FAIL {problem}\n" for problem in problems), end="")
    return 1 if problems else 0


def main():
    parser = shared.parser(__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("check")
    verb.add_argument("--binary", help="without it the lives of local/src/life are not compared")
    verb = verbs.add_parser("types")
    verb.add_argument("folder", type=pathlib.Path)
    verb.add_argument("--binary")
    verb = verbs.add_parser("take")
    verb.add_argument("clones", type=pathlib.Path)
    verb.add_argument("folder", type=pathlib.Path)
    given = parser.parse_args()
    if given.verb == "take":
        return take(given.clones, given.folder)
    if given.verb == "types":
        return types(given.folder, given.binary)
    return check(given.binary)


if __name__ == "__main__":
    sys.exit(main())
