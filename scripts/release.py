#!/usr/bin/env python3
"""Makes the files of a release, and tries them.

    scripts/release.py functions --arch arm64 --binaries DIR...    tallyhook-arm64.tar.gz
    scripts/release.py cli --binary FILE --machine Linux-x86_64    tallyhook-cli-Linux-x86_64.tar.gz
    scripts/release.py sums                                        SHA256SUMS of all files in the folder
    scripts/release.py try                                         runs the files for this machine

The archive of the functions has one zip for each function, template.yaml that points to them, samconfig.toml
and what else a deployment needs: `sam deploy --guided` in its folder deploys it without a compiler. The
archive of the commands has `tallyhook` and the sample events that `tallyhook send` sends. The same binaries
always give the same files, byte by byte.

The first of the folders that has a binary is used, as DIR/<name> or, as cargo-lambda writes it, as
DIR/<name>/bootstrap. The files are written into target/dist (--out)."""

import gzip
import hashlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import stack
from shared import ROOT, TARGET, functions, parser

ARCHITECTURES = {"arm64": "arm64", "x86-64": "x86_64"}  # as our files are named, and as Lambda names them
FOR_DEPLOYMENT = ("samconfig.toml", "stack-policy.json", "catalog.toml", "scripts/after_deploy.py",
                  "LICENSE-APACHE", "LICENSE-MIT")
BUILT_BY_SAM = re.compile(r"    Metadata:\n      BuildMethod: rust-cargolambda\n      BuildProperties:\n"
                          r"        Binary: (\S+)\n")


def here():
    """This machine, as `uname -s` and `uname -m` name it."""
    machine = os.uname()
    return f"{machine.sysname}-{machine.machine}"


def arch_here():
    return "x86-64" if os.uname().machine == "x86_64" else "arm64"


def template(arch):
    """template.yaml with a zip in place of each folder that SAM would build, and the architecture."""
    text = (ROOT / "template.yaml").read_text(encoding="utf-8")
    built = BUILT_BY_SAM.findall(text)
    text = BUILT_BY_SAM.sub("", text)
    text, pointed = re.subn(r"^(      CodeUri: functions/\S+)$", r"\1.zip", text, flags=re.MULTILINE)
    text, machines = re.subn(r"^    Architectures: \[arm64\]$", f"    Architectures: [{ARCHITECTURES[arch]}]",
                             text, flags=re.MULTILINE)
    if sorted(built) != functions() or pointed != len(built) or machines != 1 or "BuildMethod" in text:
        sys.exit(f"template.yaml has another form: {len(built)} built functions, {pointed} folders of code, "
                 f"{machines} architectures")
    return text


def zipped(binary, level=6):
    """The zip of a function, with one executable file named bootstrap."""
    entry = zipfile.ZipInfo("bootstrap", (1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o100755 << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(entry, binary, compresslevel=level)
    return packed.getvalue()


def archive(path, folder, files):
    """Writes `files`, (name, mode, bytes), as folder/name into a tar.gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as out, gzip.GzipFile("", "wb", 6, out, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, mode, content in files:
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.mode, entry.size = mode, len(content)
                tar.addfile(entry, io.BytesIO(content))
    print(f"    {path.name:<40} {path.stat().st_size / 1e6:6.1f} MB")
    return path


def find(name, folders):
    for folder in folders:
        for path in (folder / name / "bootstrap", folder / name):
            if path.is_file():
                return path.read_bytes()
    sys.exit(f"{name} is in none of {', '.join(map(str, folders))}: build it first")


def make_functions(out, arch, folders, change=str):
    """The archive with the functions of one architecture. `change` is applied to the template's text."""
    files = [("template.yaml", 0o644, change(template(arch)).encode())]
    for name in FOR_DEPLOYMENT:
        files.append((pathlib.Path(name).name, 0o755 if name.endswith(".py") else 0o644,
                      (ROOT / name).read_bytes()))
    files += [(f"functions/{name}.zip", 0o644, zipped(find(name, folders))) for name in functions()]
    return archive(out / f"tallyhook-{arch}.tar.gz", f"tallyhook-{arch}", files)


def make_cli(out, binary, machine):
    """The archive with the operator's commands for one kind of machine."""
    files = [("tallyhook", 0o755, binary.read_bytes())]
    for path in sorted(ROOT.glob("events/**/*.json")):
        files.append((str(path.relative_to(ROOT)), 0o644, path.read_bytes()))
    files += [(name, 0o644, (ROOT / name).read_bytes()) for name in ("LICENSE-APACHE", "LICENSE-MIT")]
    return archive(out / f"tallyhook-cli-{machine}.tar.gz", "tallyhook-cli", files)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_sums(out):
    """In the format of `sha256sum -c`."""
    files = sorted(path for path in out.iterdir() if path.name != "SHA256SUMS")
    (out / "SHA256SUMS").write_text("".join(f"{digest(path)}  {path.name}\n" for path in files))
    print(f"    SHA256SUMS of {len(files)} files")


def unpack(path, folder):
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(folder)


def must(command, **options):
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def try_out(out):
    """Checks the sums and the template, and runs the functions and the commands against each other."""
    for line in (out / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split()
        if digest(out / name) != expected:
            sys.exit(f"{name} has another sum than SHA256SUMS says")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        unpack(out / f"tallyhook-{arch_here()}.tar.gz", folder)
        unpack(out / f"tallyhook-cli-{here()}.tar.gz", folder)
        deployed, command = folder / f"tallyhook-{arch_here()}", folder / "tallyhook-cli" / "tallyhook"
        env = dict(os.environ, SAM_CLI_TELEMETRY="0")
        sam = ROOT / ".check/sam/bin/sam"
        must([sam, "validate", "--lint", "--region", "us-east-1"], cwd=deployed, env=env)
        print("    sam validate --lint accepts the template")
        binaries = folder / "binaries"
        binaries.mkdir()
        for packed in sorted((deployed / "functions").iterdir()):
            with zipfile.ZipFile(packed) as zip_file:
                [entry] = zip_file.infolist()
                if entry.filename != "bootstrap" or entry.external_attr >> 16 & 0o111 != 0o111:
                    sys.exit(f"{packed.name} has {entry.filename}, mode {entry.external_attr >> 16:o}")
                binary = binaries / packed.stem
                binary.write_bytes(zip_file.read(entry))
                binary.chmod(0o755)
        with stack.Stack(binaries=binaries) as local:
            local.start()
            speaks(command, local)
            must([sys.executable, "-B", ROOT / "scripts/smoke.py", "--url", local.url])
            print(f"    scripts/smoke.py passes with the {len(functions())} functions out of their zips")


def speaks(command, local):
    """The packed command, from its own folder, against the running functions."""
    env = {"PATH": os.environ["PATH"], "TALLYHOOK_URL": local.url, "ADMIN_API_TOKEN": "admin-local",
           "STRIPE_WEBHOOK_SECRET": "whsec_local"}
    client = stack.Client(local.url)
    client.register("jo")
    pack = "checkout.session.completed.pack"
    must([command, "send", pack, "--user", "jo", "--url", local.url], cwd=command.parent, env=env)
    if not stack.eventually("the event that the packed command sent takes effect",
                            ("free", stack.SIGNUP + stack.PACK), lambda: client.tier_and_credits("jo"), 30):
        sys.exit(1)
    for arguments in (["health"], ["check-user", "jo"], ["logs"]):
        must([command, *arguments], cwd=command.parent, env=env)
    print("    tallyhook send, health, check-user and logs speak to them")


def main():
    options = parser(__doc__)
    options.add_argument("--out", type=pathlib.Path, default=TARGET / "dist", help="default: target/dist")
    parts = options.add_subparsers(dest="part", required=True)
    one = parts.add_parser("functions", help="the archive of the functions")
    one.add_argument("--arch", choices=ARCHITECTURES, default=arch_here())
    one.add_argument("--binaries", type=pathlib.Path, nargs="+", required=True)
    one = parts.add_parser("cli", help="the archive of the operator's commands")
    one.add_argument("--binary", type=pathlib.Path, required=True)
    one.add_argument("--machine", default=here(), help="as `uname -s` and `uname -m` say: Linux-x86_64")
    parts.add_parser("sums", help="the SHA-256 of each file")
    parts.add_parser("try", help="unpacks and runs the files for this machine")
    options = options.parse_args()
    if options.part == "functions":
        make_functions(options.out, options.arch, options.binaries)
    elif options.part == "cli":
        make_cli(options.out, options.binary, options.machine)
    elif options.part == "sums":
        write_sums(options.out)
    else:
        try_out(options.out)


if __name__ == "__main__":
    main()
