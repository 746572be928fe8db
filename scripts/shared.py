"""What several scripts use: folders, arguments, servers on this machine, and tables of documents."""

import argparse
import http.server
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()


def parser(description):
    """A parser of arguments that shows the script's description as it is written."""
    return argparse.ArgumentParser(description=description,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def functions():
    """The names of the functions."""
    return sorted(path.parent.name for path in ROOT.glob("functions/*/Cargo.toml"))


def forget_builds():
    """Makes cargo build the workspace's crates again. After a changed copy of them was built in the same
    target folder, cargo takes what it built there for the workspace's own."""
    command = ["cargo", "metadata", "--no-deps", "--format-version=1"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    crates = {package["name"] for package in metadata["packages"]}
    for folder in TARGET.glob("*/.fingerprint/*"):
        if re.sub("-[0-9a-f]{16}$", "", folder.name) in crates:
            shutil.rmtree(folder)


def lacks(document, lines):
    """The lines that a document does not have, each with the name of the document."""
    page = (ROOT / document).read_text(encoding="utf-8").splitlines()
    return [f"{document} lacks this line: {line}" for line in lines if line not in page]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Handler(http.server.BaseHTTPRequestHandler):
    """Handles requests and prints nothing about them."""
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one write
    disable_nagle_algorithm = True

    def body(self):
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def answer(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def serve(handler):
    """Serves requests on a free port until the process ends. Returns the URL of the server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"
