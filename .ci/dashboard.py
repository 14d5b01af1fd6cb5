"""Called by .ci/dashboard: a fleet, its clients, a bad two minutes, and the questions to Prometheus afterwards."""

import asyncio
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from xml.sax.saxutils import escape

EXAMPLES, WORK, *OPTIONS = sys.argv[1:]
DOCS = Path("docs/dashboard")
processes = {}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(url, method="GET"):
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as answer:
        return answer.read().decode()


def start(name, command, environment=None, line=None):
    """Starts a process, and returns what it printed until `line` matched."""
    log = open(f"{WORK}/{name}.log", "w+b")
    processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})})
    for _ in range(200):
        text = Path(log.name).read_text()
        if line is None or re.search(line, text):
            return text
        if processes[name].poll() is not None:
            break
        time.sleep(0.05)
    sys.exit(f"{name} did not start:\n{text}")


def start_redis():
    command = ["redis-server", "--port", str(redis), "--save", "", "--bind", "127.0.0.1"]
    start("redis", command, line="Ready to accept connections")


def start_server(name, example, settings, line=r"listening on http://127\.0\.0\.1:\d+\n"):
    """Starts an example, and returns its address and what it printed."""
    metrics[name] = free_port()
    settings = {**settings, "LISTEN": "127.0.0.1:0", "METRICS_LISTEN": f"127.0.0.1:{metrics[name]}"}
    text = start(name, [f"{EXAMPLES}/{example}"], settings, r"(?s)" + line)
    return int(re.search(r"listening on http://127\.0\.0\.1:(\d+)", text)[1]), text


def order(path, method="POST"):
    fetch(fake_apple + path, method)


async def send(port, token=None, path="/", headers=(), method="GET"):
    return (await ask_for(port, token, path, headers, method))[0]


async def ask_for(port, token, path, headers, method):
    """Sends a request, and returns the status and the text of its answer."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", "Content-Length: 0", *headers]
    lines += [f"X-Apple-Device-Token: {token}"] if token else []
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 10)
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return int(answer.split(b" ", 2)[1]), answer.decode()
    except (OSError, asyncio.TimeoutError, IndexError, ValueError):
        return 0, ""


class Clients:
    """Requests a second of each kind; the scenario changes them."""

    def __init__(self):
        self.rates = dict(new=6, again=15, forged=0.3, none=0.5, crowd=0.2, old=2, broken=0.5, single=2, twice=0.3, gateway=2, session=1)
        self.known, self.sent = [], set()

    def one(self, kind):
        token = lambda: fetch(f"{fake_apple}/fake/token")
        forged = lambda: fetch(f"{fake_apple}/fake/forged")
        enforcing = random.choice([ports["api-1"], ports["api-2"]])
        match kind:
            case "new":
                yield self.first_time(enforcing, token())
                yield send(ports["next-release"], token())
            case "again" if self.known:
                yield send(enforcing, random.choice(self.known))
            case "forged":
                yield send(enforcing, forged())
                yield send(ports["next-release"], forged())
            case "none":
                yield send(enforcing)
            case "crowd":
                fresh = token()
                yield from (send(enforcing, fresh) for _ in range(4))
            # The roll-out: old versions of the app send no token, and one version breaks it.
            case "old":
                yield send(ports["next-release"])
            case "broken":
                yield send(ports["next-release"], "not a token")
            case "single":
                yield send(ports["payments"], token())
            case "twice":
                fresh = token()
                yield send(ports["payments"], fresh)
                yield send(ports["payments"], fresh)
            case "session":
                yield self.buy(token())
            case "gateway":
                yield send(ports["gateway"], path="/v1/openai/models", headers=[header.replace("$TOKEN", gateway_token()) for header in gateway_headers])

    async def first_time(self, port, token):
        if await send(port, token) == 200:
            self.known = (self.known + [token])[-30:]

    async def buy(self, token):
        _, answer = await ask_for(ports["sessions"], token, "/session", (), "POST")
        if bought := re.search(r'"session":"([^"]+)"', answer):
            for _ in range(5):
                await send(ports["sessions"], headers=[f"X-Device-Session: {bought[1]}"])

    def go(self, work):
        task = asyncio.ensure_future(work)
        self.sent.add(task)
        task.add_done_callback(self.sent.discard)

    async def run(self, seconds):
        end, due = time.monotonic() + seconds, {kind: random.random() for kind in self.rates}
        while time.monotonic() < end:
            for kind, rate in self.rates.items():
                due[kind] += rate / 20
                while due[kind] >= 1:
                    due[kind] -= 1
                    for work in self.one(kind):
                        self.go(work)
            await asyncio.sleep(0.05)


async def scenario():
    clients = Clients()

    def note(what):
        marks.append((time.time(), what))
        print(f"{time.time() - began:5.0f} s  {what}", flush=True)

    note("a good day")
    await clients.run(25)
    crowd = [fetch(f"{fake_apple}/fake/token") for _ in range(400)]
    note("Apple hangs")
    order("/fake/outage?fault=hang")
    for token in crowd:
        clients.go(send(ports["api-1"], token))
    await clients.run(20)
    note("Apple is back")
    order("/fake/outage", "DELETE")
    await clients.run(15)
    note("Apple says 429")
    order("/fake/outage?status=429&retry_after_s=10")
    await clients.run(15)
    order("/fake/outage", "DELETE")
    await clients.run(15)
    note("an attack")
    clients.rates.update(forged=40, none=20)
    await clients.run(20)
    clients.rates.update(forged=0.3, none=0.5)
    note("Redis is gone")
    processes["redis"].kill()
    processes["redis"].wait()
    await clients.run(8)
    start_redis()
    note("Redis is back")
    await clients.run(15)
    note("the end")
    await asyncio.gather(*clients.sent)


def ask(query, window="10s"):
    """The series of a query over the run, with the labels as a legend needs them."""
    query = query.replace("$__rate_interval", window)
    arguments = urllib.parse.urlencode({"query": query, "start": began, "end": marks[-1][0], "step": 1})
    answer = json.loads(fetch(f"http://127.0.0.1:{prometheus}/api/v1/query_range?{arguments}"))
    series = []
    for one in answer["data"]["result"]:
        values = [(at - began, float(value)) for at, value in one["values"] if value != "NaN"]
        series.append((one["metric"], values))
    return series


def check():
    """Fails unless each query of the dashboard and of the rules has an answer that is not all zero."""
    rules = (DOCS / "rules.yml").read_text()
    tests = (DOCS / "rules-test.yml").read_text()
    faults = []
    queries = {panel["title"]: panel["targets"] for panel in dashboard["panels"] if panel["type"] != "row"}
    for title, targets in queries.items():
        for target in targets:
            series = ask(target["expr"])
            best = max((value for _, values in series for _, value in values), default=0)
            print(f"{title}: {len(series)} series, at most {best:.3g}")
            if best == 0:
                faults.append(f"panel {title!r}: no answer but zero: {target['expr']}")
    texts = rules + "".join(target["expr"] for targets in queries.values() for target in targets)
    exported = "".join(fetch(f"http://127.0.0.1:{port}/metrics") for port in metrics.values())
    described = set(re.findall(r"^# TYPE (\w+)", exported, re.M))
    for name in sorted(set(re.findall(r"\bdevicecheck_[a-z0-9_]+\b", texts))):
        if not any(value for _, values in ask(name) for _, value in values):
            faults.append(f"metric {name}: it has no value but zero")
    used = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\bdevicecheck_[a-z0-9_]+\b", texts)}
    faults += [f"metric {name}: no panel and no rule shows it" for name in sorted(described - used)]
    for name in re.findall(r"record: (\S+)", rules):
        if not any(value for _, values in ask(name) for _, value in values):
            faults.append(f"record {name}: it has no value but zero")
    documented = (DOCS.parent / "metrics.md").read_text()
    for alert in re.findall(r"alert: (\S+)", rules):
        fires = re.search(rf"alertname: {alert}\n\s+exp_alerts", tests)
        stays_silent = re.search(rf"alertname: {alert}}}", tests)
        if not (fires and stays_silent):
            faults.append(f"alert {alert}: rules-test.yml does not show that it fires and that it stays silent")
        if f"\n### {alert}\n" not in documented:
            faults.append(f"alert {alert}: docs/metrics.md does not say what to do")
    checked = subprocess.run(["promtool", "check", "metrics"], input=exported.encode(), capture_output=True)
    if checked.returncode:
        # One process after the other writes the same metric, which is no fault of either.
        for name, port in metrics.items():
            one = subprocess.run(["promtool", "check", "metrics"], input=fetch(f"http://127.0.0.1:{port}/metrics").encode(), capture_output=True)
            faults += [f"{name}: promtool: {line}" for line in one.stderr.decode().splitlines()]
    return faults


# The same as in the dashboard.
MEANINGS = {"verified": 0, "accepted": 0, "available": 0, "unavailable": 1, "no_answer": 1, "down": 1, "refused": 2, "refused_token": 2, "throttled": 3, "held_off": 3}
COLOURS = ["#1a7f37", "#cf222e", "#0969da", "#9a6700", "#8250df", "#57606a", "#bc4c00", "#1b7c83"]


def chart(title, series, x, y, width, height, unit):
    """One chart: lines over the seconds of the run, the marks of the scenario, and a legend."""
    series = sorted((name, values) for name, values in series if any(value for _, value in values))
    free = [number for number in range(len(COLOURS)) if number not in {MEANINGS.get(name) for name, _ in series}] * 4
    top = max((value for _, values in series for _, value in values), default=1) * 1.1
    span = marks[-1][0] - began
    left, bottom = x + 46, y + height - 40
    across = lambda at: left + at / span * (width - 60)
    up = lambda value: bottom - value / top * (height - 84)
    shown = lambda value: f"{value * 100:.0f} %" if unit == "%" else f"{value:.3g}{unit}"
    out = [f'<text x="{x + 8}" y="{y + 18}" font-weight="600">{escape(title)}</text>']
    for part in (0, 0.5, 1):
        level = up(top / 1.1 * part)
        out.append(f'<path d="M{left} {level:.1f}H{x + width - 14}" stroke="#d0d7de"/>')
        out.append(f'<text x="{left - 5}" y="{level + 4:.1f}" text-anchor="end" fill="#57606a">{shown(top / 1.1 * part)}</text>')
    for number, (at, what) in enumerate(marks[:-1]):
        place = across(at - began)
        out.append(f'<path d="M{place:.1f} {y + 34}V{bottom}" stroke="#8c959f" stroke-dasharray="3 3"/>')
        out.append(f'<text x="{place + 3:.1f}" y="{y + 34 + 11 * (number % 2)}" fill="#57606a" font-size="10">{escape(what)}</text>')
    place = x + 46
    for name, values in series:
        colour = COLOURS[MEANINGS[name] if name in MEANINGS else free.pop(0)]
        pieces, before = [], None
        for at, value in values:
            pieces.append(f"{'M' if before is None or at - before > 1.5 else 'L'}{across(at):.1f} {up(value):.1f}")
            before = at
        out.append(f'<path d="{"".join(pieces)}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        out.append(f'<path d="M{place} {bottom + 20}h14" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<text x="{place + 18}" y="{bottom + 24}">{escape(name)}</text>')
        place += 30 + 6.6 * len(name)
    return "".join(out)


def picture(name, titles):
    panels = {panel["title"]: panel for panel in dashboard["panels"]}
    width, height = 900, 230
    body = []
    for number, title in enumerate(titles):
        series = []
        for target in panels[title]["targets"]:
            for labels, values in ask(target["expr"]):
                legend = re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), target["legendFormat"])
                series.append((names.get(legend, legend), values))
        unit = {"percentunit": "%", "reqps": "/s", "s": " s"}.get(panels[title]["fieldConfig"]["defaults"]["unit"], "")
        body.append(chart(title, series, 0, number * height, width, height, unit))
    total = height * len(titles)
    Path(PICTURES, f"{name}.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{total}" fill="#fff"/>{"".join(body)}</svg>\n'
    )


metrics, ports, marks = {}, {}, []
dashboard = json.loads((DOCS / "dashboard.json").read_text())
PICTURES = DOCS if "--pictures" in OPTIONS else WORK
try:
    redis, prometheus = free_port(), free_port()
    start_redis()
    text = start("apple", [f"{EXAMPLES}/fake_apple"], {"LISTEN": "127.0.0.1:0", "LISTEN_DEVELOPMENT": "127.0.0.1:0", "LISTEN_ORDERS": "127.0.0.1:0"}, "FAKE_APPLE=.*\n(.*\n)+.*counts")
    apple = dict(re.findall(r'^export (\w+)="?(.*?)"?$', text, re.M))
    fake_apple = apple.pop("FAKE_APPLE")
    shared = {**apple, "REDIS_URL": f"redis://127.0.0.1:{redis}"}
    for name, settings in {
        "api-1": shared,
        "api-2": shared,
        "payments": {**shared, "SINGLE_USE": "1"},
        "next-release": {**apple, "ENFORCEMENT": "monitor"},
    }.items():
        ports[name], _ = start_server(name, "axum", settings)
    ports["sessions"], _ = start_server("sessions", "session", shared)
    # The gateway makes up a provider, keys for it, and an Apple.
    ports["gateway"], text = start_server("gateway", "ai_gateway", {}, r"/usage -H")
    hint = re.search(r"curl -i \S+/v1/openai/models (.*)", text)[1]
    gateway_headers = [re.sub(r"\$\(curl[^)]*\)", "$TOKEN", header) for header in re.findall(r"-H ['\"]([^'\"]+)['\"]", hint)]
    gateway_apple = re.search(r"curl -s (http\S+)/fake/token", text)[1]
    gateway_token = lambda: fetch(f"{gateway_apple}/fake/token")
    names = {f"127.0.0.1:{port}": name for name, port in metrics.items()}
    targets = [{"targets": [f"127.0.0.1:{port}"]} for port in metrics.values()]
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str((DOCS / "rules.yml").resolve())],
        "scrape_configs": [{"job_name": "api", "static_configs": targets}],
    }
    Path(WORK, "prometheus.yml").write_text(json.dumps(configuration))
    command = ["prometheus", f"--config.file={WORK}/prometheus.yml", f"--storage.tsdb.path={WORK}/data", f"--web.listen-address=127.0.0.1:{prometheus}"]
    start("prometheus", command, line="ready to receive web requests")
    began = time.time()
    asyncio.run(scenario())
    time.sleep(2)
    faults = check()
    picture("rollout", ["Requests that would be refused, by reason", "Share that would be refused"])
    picture("outage", ["Decisions", "Requests to Apple, by result", "The way to Apple", "Calls that were not made, by reason"])
    picture("fleet", ["Requests by instance", "Evidence of the admitted", "Cache hits", "Redis"])
    if faults:
        sys.exit("\n".join(faults))
    print("every panel and every rule has an answer")
finally:
    for process in processes.values():
        process.kill()
        process.wait()
