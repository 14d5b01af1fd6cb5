"""Called by .ci/worker: the Worker in workerd, beside the fake Apple. What is measured is printed at the end."""

import gzip
import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WORKERD, PACKAGE, FAKE_APPLE, COMPATIBILITY_DATE = sys.argv[1:]
TICKS = os.sysconf("SC_CLK_TCK")

# The directory stands in for the namespace, and all isolates share it.
CONFIG = """
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = .worker),
    (name = "internet", network = (allow = ["127.0.0.0/8"])),
    (name = "verdicts", disk = (path = "%(verdicts)s", writable = true)),
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);
const worker :Workerd.Worker = (
  modules = [
    (name = "worker.js", esModule = embed "worker.js"),
    (name = "index_bg.wasm", wasm = embed "index_bg.wasm"),
  ],
  compatibilityDate = "%(date)s",
  bindings = [(name = "VERDICTS", kvNamespace = "verdicts"), %(variables)s],
);
"""


class Apple:
    """The fake Apple of the examples, and its orders."""

    def __init__(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("APPLE_JWT_")}
        environment["LISTEN"] = "127.0.0.1:0"
        self.process = subprocess.Popen([FAKE_APPLE], env=environment, stdout=subprocess.PIPE, text=True)
        self.variables = {}
        while "FAKE_APPLE" not in self.variables:
            line = self.process.stdout.readline()
            assert line, "the fake Apple has ended"
            if found := re.match(r'export (\w+)="?([^"]*)"?$', line.strip()):
                self.variables[found[1]] = found[2]
        self.orders = self.variables.pop("FAKE_APPLE")
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def order(self, path, method="GET"):
        with urllib.request.urlopen(urllib.request.Request(f"{self.orders}/fake/{path}", method=method)) as answer:
            return answer.read().decode()

    def token(self, environment="production"):
        return self.order(f"token?environment={environment}")

    def calls(self):
        return int(self.order("calls"))


class Isolate:
    """The Worker in a workerd of its own."""

    def __init__(self, work, variables, **more):
        started = time.monotonic()
        variables = {**variables, **more}
        # The names stand in the file, and the values in the environment.
        names = ", ".join(f'(name = "{name}", fromEnvironment = "{name}")' for name in variables)
        config = Path(PACKAGE, f"config-{time.monotonic_ns()}.capnp")
        config.write_text(CONFIG % {"verdicts": work, "date": COMPATIBILITY_DATE, "variables": names})
        reading, writing = os.pipe()
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [WORKERD, "serve", f"--control-fd={writing}", str(config)],
            env={**os.environ, **variables},
            pass_fds=[writing],
            stdout=self.log,
            stderr=self.log,
        )
        os.close(writing)
        with open(reading) as control:
            line = control.readline()
        assert line, f"workerd has ended: {self.printed()}"
        self.port = json.loads(line)["port"]
        config.unlink()
        self.started = started

    def connection(self, timeout=30):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, token=None, path="/", connection=None, **headers):
        """Status, code of the rejection, body and seconds."""
        if token:
            headers["X-Apple-Device-Token"] = token
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        own = connection or self.connection()
        started = time.monotonic()
        own.request("GET", path, headers=headers)
        answer = own.getresponse()
        body = answer.read().decode()
        seconds = time.monotonic() - started
        if not connection:
            own.close()
        return answer.status, answer.headers["x-devicecheck-code"], body, seconds

    def leave(self, token):
        """A client that does not wait for the answer."""
        connection = self.connection()
        connection.request("GET", "/", headers={"X-Apple-Device-Token": token})
        time.sleep(0.3)
        # A reset: workerd takes a mere end of the client's half of the connection for a client that still reads.
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    def cpu(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self):
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) / 1024

    def printed(self):
        self.log.seek(0)
        return self.log.read()

    def stop(self):
        self.process.terminate()
        self.process.wait()


def check(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: {found!r}, expected {expected!r}")
    print(f"ok: {what}: {found}")


def concurrently(ask, arguments, at_a_time):
    with ThreadPoolExecutor(at_a_time) as pool:
        return list(pool.map(ask, arguments))


def cpu_per_request(isolate, tokens, **request):
    connection = isolate.connection()
    before = isolate.cpu()
    for token in tokens:
        status = isolate.ask(token, connection=connection, **request)[0]
        assert status == 200, status
    spent = isolate.cpu() - before
    connection.close()
    return spent / len(tokens) * 1000


def run(apple, work):
    verdicts = Path(work, "verdicts")
    verdicts.mkdir()
    token = apple.token()
    first = Isolate(verdicts, apple.variables)
    status, _, body, _ = first.ask(token)
    cold = time.monotonic() - first.started
    check("a genuine token is admitted", (status, body.strip()), (200, "hello, device verified by apple"))
    check("it is remembered in the isolate", first.ask(token)[2].strip(), "hello, device verified by cache")
    check("a bad token is refused", first.ask(apple.order("forged"))[:2], (401, "refused_token"))
    check("no token", first.ask()[:2], (401, "missing_token"))
    check("a route outside of the gate needs none", first.ask(path="/health")[0], 200)
    check("Apple was asked", apple.calls(), 2)

    second = Isolate(verdicts, apple.variables, DEVELOPMENT_HEADER="true", IN_FLIGHT_LIMIT="2")
    check("a second isolate finds the verdict", second.ask(token)[2].strip(), "hello, device verified by cache")
    check("and does not ask Apple", apple.calls(), 2)

    development = apple.token("development")
    header = {"X_Apple_Device_Development": "true"}
    check("the header of development builds is ignored", first.ask(development, **header)[:2], (401, "refused_token"))
    check("unless the operator opts in", second.ask(development, **header)[0], 200)

    apple.order("counts", "DELETE")
    tokens = [apple.token() for _ in range(5)]
    statuses = {answer[0] for answer in concurrently(first.ask, tokens * 40, 20)}
    check("200 requests, 20 at a time, with five tokens", statuses, {200})
    print(f"    with {apple.calls()} calls to Apple")

    apple.order("outage?fault=hang", "POST")
    status, code, _, seconds = first.ask(apple.token())
    check("while Apple hangs", (status, code, seconds < 6), (503, "unavailable", True))
    print(f"    after {seconds:.1f} s")
    answers = concurrently(second.ask, [apple.token() for _ in range(5)], 5)
    check("beyond the in-flight limit nobody waits", sorted(answer[3] < 1 for answer in answers), [False] * 2 + [True] * 3)
    check("and all are told to come back", {answer[:2] for answer in answers}, {(503, "unavailable")})
    concurrently(second.leave, [apple.token(), apple.token()], 2)
    apple.order("outage", "DELETE")
    time.sleep(6)
    check("clients that left have given their slots back", second.ask(apple.token())[0], 200)

    without = Isolate(verdicts, {name: value for name, value in apple.variables.items() if name != "APPLE_JWT_KID"})
    check("without a secret", without.ask(token)[0], 500)
    check("and the log names it", "wrangler secret put APPLE_JWT_KID" in without.printed(), True)

    sample = [apple.token() for _ in range(300)]
    health = cpu_per_request(first, [None] * 2000, path="/health")
    remembered = cpu_per_request(first, [token] * 2000)
    asked = cpu_per_request(first, sample)
    for isolate in (first, second, without):
        isolate.stop()
        log = isolate.printed()
        secrets = [apple.variables["APPLE_JWT_PRIVATE_KEY"].split("\\n")[1], token, *tokens]
        assert not any(secret in log for secret in secrets), "a secret is in the log"
    check("the log has the outage", "unavailable" in first.printed(), True)

    wasm = Path(PACKAGE, "index_bg.wasm").read_bytes()
    print(f"size: {len(wasm) / 1e6:.2f} MB, {len(gzip.compress(wasm)) / 1e3:.0f} kB with gzip")
    print(f"cold start to the first verdict, workerd's own included: {cold * 1000:.0f} ms")
    print("CPU of workerd per request, the HTTP server included: "
          f"{health:.2f} ms outside of the gate, {remembered:.2f} ms remembered, {asked:.2f} ms asking Apple")


apple = Apple()
try:
    with tempfile.TemporaryDirectory() as work:
        run(apple, work)
finally:
    apple.process.terminate()
