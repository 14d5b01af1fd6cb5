"""Called by .ci/lambda: the side of AWS Lambda. Serves the Runtime API to the function, and freezes it."""

import asyncio
import base64
import json
import os
import queue
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

BINARY, WORK = sys.argv[1:]
FREEZE = float(os.environ.get("FREEZE", "60"))
# Shorter than the freeze, and longer than the 15 seconds between two pings of a process that runs.
APPLES_IDLE_TIMEOUT = min(30.0, FREEZE / 2)
COLD_STARTS = 11
TOKEN = "x-apple-device-token"
tokens, processes = [], []


def fake(path, method="GET"):
    request = urllib.request.Request(os.environ["FAKE_APPLE"] + path, method=method)
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


def genuine():
    tokens.append(fake("/fake/token"))
    return tokens[-1]


def forged():
    tokens.append(fake("/fake/forged"))
    return tokens[-1]


class Wire:
    """Between one function and the fake Apple: ends TLS, and closes idle connections, loses or forgets them."""

    loop = asyncio.new_event_loop()

    def __init__(self):
        self.connections = set()
        self.opened = 0
        self.idle_closes = 0
        self.port = self.on_loop(self.listen())

    @classmethod
    def on_loop(cls, work):
        return asyncio.run_coroutine_threadsafe(work, cls.loop).result()

    async def listen(self):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(f"{WORK}/certificate.pem", f"{WORK}/key.pem")
        tls.set_alpn_protocols(["h2"])
        self.server = await asyncio.start_server(self.connected, "127.0.0.1", 0, ssl=tls)
        return self.server.sockets[0].getsockname()[1]

    async def connected(self, reader, writer):
        self.protocol = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        connection = Connection(self, reader, writer)
        self.opened += 1
        self.connections.add(connection)
        await connection.run()
        self.connections.discard(connection)

    def change(self, fate):
        """What becomes of the connections that there are; later ones are well."""
        assert len(self.connections) == 1, self.connections
        for connection in self.connections:
            connection.fate = fate


class Connection:
    def __init__(self, wire, reader, writer):
        self.wire, self.reader, self.writer = wire, reader, writer
        # "closed" when it is idle; "lost": nothing comes through; "forgotten": the next packet is answered by a reset.
        self.fate = "closed"

    async def run(self):
        apple = urlsplit(os.environ["DEVICECHECK_PRODUCTION_URL"])
        reader, writer = await asyncio.open_connection(apple.hostname, apple.port)
        ends = self.pump(self.reader, writer), self.pump(reader, self.writer), self.idle()
        tasks = [asyncio.ensure_future(end) for end in ends]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
        self.writer.close()

    async def pump(self, source, sink):
        self.used = time.monotonic()
        while data := await source.read(65536):
            self.used = time.monotonic()
            if self.fate == "closed":
                sink.write(data)
                await sink.drain()
            elif self.fate == "forgotten":
                # Closing without time to linger is a reset.
                linger = struct.pack("ii", 1, 0)
                self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.writer.transport.abort()

    async def idle(self):
        while self.fate != "closed" or time.monotonic() - self.used < APPLES_IDLE_TIMEOUT:
            await asyncio.sleep(0.1)
        self.wire.idle_closes += 1


class RuntimeApi(BaseHTTPRequestHandler):
    """https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html"""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # An answer in one piece: in two, Nagle's algorithm holds back the second one for 40 ms.

    def log_message(self, *_):
        pass

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        assert self.path == "/2018-06-01/runtime/invocation/next", self.path
        function = self.server.function
        function.waits.set()
        invocation, event = function.events.get()
        function.waits.clear()
        if event is None:  # The function has ended.
            self.close_connection = True
            return
        self.answer(
            200,
            [
                ("lambda-runtime-aws-request-id", invocation),
                ("lambda-runtime-deadline-ms", str(int((time.time() + 30) * 1000))),
                ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:eu-west-1:1:function:devicecheck"),
                ("lambda-runtime-trace-id", "Root=1-0-0"),
                ("content-type", "application/json"),
            ],
            json.dumps(event).encode(),
        )

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.server.function.results.put((self.path, body, time.monotonic()))
        self.answer(202)


class RuntimeServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        # A function that is killed leaves its connections.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*_)


class Function:
    """One instance of the function, with a Runtime API and a way to Apple of its own."""

    def __init__(self, moves_clocks=False):
        self.events, self.results, self.waits = queue.Queue(), queue.Queue(), threading.Event()
        self.api = RuntimeServer(("127.0.0.1", 0), RuntimeApi)
        self.api.function = self
        threading.Thread(target=self.api.serve_forever, daemon=True).start()
        self.wire = Wire()
        self.log = open(f"{WORK}/log.{self.wire.port}", "w+")
        apple = {name: value for name, value in os.environ.items() if name.startswith("APPLE_")}
        lambdas = {
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self.api.server_port}",
            "AWS_LAMBDA_FUNCTION_NAME": "devicecheck",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/devicecheck",
            "AWS_LAMBDA_LOG_STREAM_NAME": "stream",
            "SSL_CERT_FILE": f"{WORK}/roots.pem",
            "DEVICECHECK_PRODUCTION_URL": f"https://localhost:{self.wire.port}",
        }
        if moves_clocks:
            self.clocks = f"{WORK}/clocks.{self.wire.port}"
            self.move_clocks(0, 0)
            lambdas |= {"LD_PRELOAD": f"{WORK}/clocks.so", "CLOCKS": self.clocks}
        self.started = time.monotonic()
        self.process = subprocess.Popen([BINARY], env=apple | lambdas, stderr=self.log)
        processes.append(self.process)

    def move_clocks(self, monotonic, wall):
        data = struct.pack("qq", int(monotonic * 1e9), int(wall * 1e9))
        if not os.path.exists(self.clocks):
            open(self.clocks, "wb").write(data)
        # In place: the process has mapped the file.
        with open(self.clocks, "r+b", buffering=0) as file:
            file.write(data)

    def send(self, event):
        self.events.put((f"invocation-{time.monotonic_ns()}", event))

    def receive(self, timeout=20):
        try:
            path, body, self.answered = self.results.get(timeout=timeout)
        except queue.Empty:
            raise SystemExit(f"no answer from the function; its log:\n{self.read_log()}") from None
        assert path.endswith("/response"), (path, body)
        return Answer(json.loads(body))

    def invoke(self, event):
        started = time.monotonic()
        self.send(event)
        answer = self.receive()
        answer.seconds = self.answered - started
        return answer

    def freeze(self):
        # Lambda freezes a function that waits for its next event.
        assert self.waits.wait(10)
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def read_log(self):
        self.log.seek(0)
        return self.log.read()

    def stop(self):
        assert self.waits.wait(10)
        self.process.kill()
        self.process.wait()
        self.events.put(("", None))
        self.api.shutdown()
        log = self.read_log()
        assert "panicked" not in log, log
        assert not any(token in log for token in tokens), "a device token is in the log"


class Answer:
    def __init__(self, raw):
        self.raw = raw
        self.status = raw["statusCode"]
        self.headers = {name.lower(): value for name, value in raw.get("headers", {}).items()}
        self.body = raw.get("body") or ""
        assert not raw.get("isBase64Encoded"), raw


def api_gateway(method="GET", path="/", headers=(), body=None, host="id.execute-api.eu-west-1.amazonaws.com"):
    event = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"host": host, "accept": "*/*", **dict(headers)},
        "requestContext": {
            "accountId": "1",
            "apiId": "id",
            "domainName": host,
            "domainPrefix": "id",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "app",
            },
            "requestId": "id",
            "routeKey": "$default",
            "stage": "$default",
            "time": "01/Jan/2026:00:00:00 +0000",
            "timeEpoch": 1767225600000,
        },
        "isBase64Encoded": False,
    }
    if body is not None:
        event |= {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}
    return event


def function_url(**request):
    return api_gateway(host="id.lambda-url.eu-west-1.on.aws", **request)


def load_balancer(method="GET", path="/", headers=(), body=None):
    return {
        "requestContext": {"elb": {"targetGroupArn": "arn:aws:elasticloadbalancing:eu-west-1:1:targetgroup/t/1"}},
        "httpMethod": method,
        "path": path,
        "queryStringParameters": {},
        "headers": {"host": "lb.eu-west-1.elb.amazonaws.com", "x-forwarded-proto": "https", **dict(headers)},
        "body": base64.b64encode(body or b"").decode(),
        "isBase64Encoded": True,
    }


def load_balancer_with_lists(**request):
    event = load_balancer(**request)
    headers = event.pop("headers")
    as_list = lambda value: value if isinstance(value, list) else [value]
    event["multiValueHeaders"] = {name: as_list(value) for name, value in headers.items()}
    event["multiValueQueryStringParameters"] = event.pop("queryStringParameters")
    return event


def check(name, function, event, status, calls, within=None, code=None, evidence=None):
    """One request: its status, headers and body, and how often it made the function ask Apple."""
    before = int(fake("/fake/calls"))
    answer = function.invoke(event)
    asked = int(fake("/fake/calls")) - before
    print(f"{name}: {answer.status}, {asked} calls to Apple, {answer.seconds * 1000:.0f} ms", flush=True)
    found = (answer.status, asked)
    assert found == (status, calls), f"expected {(status, calls)}: {answer.raw}\n{function.read_log()}"
    assert within is None or answer.seconds < within, f"expected less than {within} s"
    if code:
        problem = json.loads(answer.body)
        assert (problem["status"], problem["code"]) == (status, code), problem
        expected = {
            "content-type": "application/problem+json",
            "cache-control": "no-store",
            "x-devicecheck-code": code,
        }
        if status == 401:
            expected["www-authenticate"] = "DeviceCheck"
        for header, value in expected.items():
            assert answer.headers.get(header) == value, (header, answer.headers)
    if evidence:
        assert answer.headers["content-type"] == "application/json", answer.headers
        device = json.loads(answer.body)
        assert (device["environment"], device["evidence"]) == ("production", evidence), device
    return answer


def events():
    print("--- events")
    function = Function()
    for source in [api_gateway, function_url, load_balancer, load_balancer_with_lists]:
        name, token = source.__name__, genuine()
        request = lambda token: source(headers={TOKEN: token})
        check(f"{name}, a new token", function, request(token), 200, 1, evidence="apple")
        answer = check(f"{name}, the same token", function, request(token), 200, 0, evidence="cache")
        if "load_balancer" in name:
            assert answer.raw["statusDescription"] == "200 OK", answer.raw
            assert answer.raw["multiValueHeaders"]["content-type"] == ["application/json"], answer.raw
        check(f"{name}, a forged token", function, request(forged()), 401, 1, code="refused_token")
        check(f"{name}, no token", function, source(), 401, 0, code="missing_token")
        check(f"{name}, no base64", function, request("%"), 401, 0, code="malformed_token")
        assert check(f"{name}, /health", function, source(path="/health"), 200, 0).body == "ok"
        check(f"{name}, an unknown path", function, source(path="/x", headers={TOKEN: token}), 404, 0)
        bits = b'{"bit0":true,"bit1":false}'
        headers = {TOKEN: token, "content-type": "application/json"}
        put = source(method="PUT", path="/bits", headers=headers, body=bits)
        assert check(f"{name}, bits", function, put, 200, 1).body.encode() == bits
    # API Gateway joins the values of a repeated header, a load balancer may send them as a list.
    twice = [genuine(), genuine()]
    check("two tokens, joined", function, api_gateway(headers={TOKEN: ",".join(twice)}), 401, 0, code="malformed_token")
    check("two tokens", function, load_balancer_with_lists(headers={TOKEN: twice}), 401, 0, code="malformed_token")
    fake("/fake/outage?status=500", "POST")
    check("Apple is down", function, api_gateway(headers={TOKEN: genuine()}), 503, 1, code="unavailable")
    fake("/fake/outage", "DELETE")
    assert (function.wire.opened, function.wire.protocol) == (1, "h2"), "one connection for all"
    function.stop()
    ended = subprocess.run([BINARY], env={}, stderr=subprocess.PIPE, text=True, timeout=10)
    print(f"without credentials: {ended.stderr.strip()}")
    assert ended.returncode == 1 and "APPLE_JWT_ISS: it is not set" in ended.stderr


def frozen():
    print(f"--- frozen for {FREEZE:.0f} s; Apple closes connections that are idle for {APPLES_IDLE_TIMEOUT:.0f} s")
    closed, lost, forgotten, busy = Function(), Function(), Function(), Function()
    still = Function(moves_clocks=True)
    request = lambda token: api_gateway(headers={TOKEN: token})
    good, bad = request(genuine()), request(forged())
    functions = {"closed": closed, "lost": lost, "forgotten": forgotten, "still": still, "busy": busy}
    for name, function in functions.items():
        check(f"{name}, before: a new token", function, good, 200, 1, evidence="apple")
        check(f"{name}, before: a forged token", function, bad, 401, 1, code="refused_token")
        check(f"{name}, before: the forged token again", function, bad, 401, 0, code="refused_token")
    # This one is stopped while Apple takes its time. Lambda does that where an extension or a handler answers early.
    fake("/fake/outage?delay_ms=1500", "POST")
    busy.send(request(genuine()))
    time.sleep(0.7)
    busy.process.send_signal(signal.SIGSTOP)
    fake("/fake/outage", "DELETE")
    for function in [closed, lost, forgotten, still]:
        function.freeze()
    lost.wire.change("lost")
    forgotten.wire.change("forgotten")
    time.sleep(FREEZE)
    assert closed.wire.idle_closes == 1, closed.wire.idle_closes
    # A time to live of 30 seconds is over, one of 5 minutes is not.
    asked = 1 if FREEZE > 30 else 0

    closed.thaw()
    check("connection closed: a new token", closed, request(genuine()), 200, 1, within=1, evidence="apple")
    check("connection closed: a token from before", closed, good, 200, 0, evidence="cache")
    check("connection closed: a refusal from before", closed, bad, 401, asked, code="refused_token")
    assert closed.wire.opened == 2, closed.wire.opened

    lost.thaw()
    # The deadline of one attempt, then a second attempt over a new connection.
    check("connection lost: a new token", lost, request(genuine()), 200, 1, within=4, evidence="apple")
    check("connection lost: the next one", lost, request(genuine()), 200, 1, within=1, evidence="apple")
    assert lost.wire.opened == 2, lost.wire.opened

    forgotten.thaw()
    check("connection forgotten: a new token", forgotten, request(genuine()), 200, 1, within=1, evidence="apple")
    assert forgotten.wire.opened == 2, forgotten.wire.opened

    still.move_clocks(-FREEZE, 0)
    still.thaw()
    check("monotonic clock stood still: a new token", still, request(genuine()), 200, 1, within=1, evidence="apple")
    check("monotonic clock stood still: a token from before", still, good, 200, 0, evidence="cache")
    check("monotonic clock stood still: a refusal from before", still, bad, 401, asked, code="refused_token")
    # Two hours for everybody's wall clock, none for the monotonic clock. Apple refuses the old provider token once.
    still.freeze()
    still.move_clocks(-FREEZE, 7200)
    fake("/fake/clock?ahead_s=7200", "POST")
    still.thaw()
    check("two hours, stood still: a token from before", still, good, 200, 2, evidence="apple")
    check("two hours, stood still: a refusal from before", still, bad, 401, 1, code="refused_token")
    fake("/fake/clock?ahead_s=0", "POST")

    busy.thaw()
    answer = busy.receive()
    print(f"stopped while Apple was asked: {answer.status}")
    assert answer.status in (200, 503), answer.raw
    check("stopped while Apple was asked: a new token", busy, request(genuine()), 200, 1, within=1, evidence="apple")
    for function in functions.values():
        function.stop()


def cold_starts():
    print("--- cold starts")
    ready, answered = [], []
    for _ in range(COLD_STARTS):
        event = api_gateway(headers={TOKEN: genuine()})
        function = Function()
        assert function.waits.wait(10)
        ready.append((time.monotonic() - function.started) * 1000)
        assert function.invoke(event).status == 200
        answered.append((function.answered - function.started) * 1000)
        function.stop()
    for name, times in [("first event asked for", ready), ("first 200, Apple asked over TLS", answered)]:
        median, slowest = statistics.median(times), max(times)
        print(f"from the start of the process to: {name}: {median:.1f} ms, at most {slowest:.1f} ms, of {COLD_STARTS}")
    print(f"binary: {os.path.getsize(BINARY) / 1e6:.1f} MB")


def roots():
    """The system's certificates too, because a cold start reads them all."""
    system = ssl.get_default_verify_paths().cafile
    with open(f"{WORK}/roots.pem", "w") as file:
        for path in filter(None, [system, f"{WORK}/certificate.pem"]):
            file.write(open(path).read())


threading.Thread(target=Wire.loop.run_forever, daemon=True).start()
roots()
try:
    events()
    frozen()
    cold_starts()
finally:
    # After a failure, no frozen process may be left.
    for process in processes:
        process.kill()
