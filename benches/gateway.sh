#!/usr/bin/env bash
# The example ai_gateway beside nginx as a plain reverse proxy: requests a second, CPU time a request, and memory at 100
# streams. Takes about two minutes after building. Needs two cores, nginx, wrk and python3. RUNS and SECONDS_EACH change
# its length. LiteLLM's gateway is measured where `litellm` is on the PATH, and Portkey's where PORTKEY has its command, such
# as "npx @portkey-ai/gateway".
#
# Each server has one core, the first. The load and the fake provider have the second. Both proxies keep connections
# both ways and write no access log. The runs alternate.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin
runs=${RUNS:-5} seconds=${SECONDS_EACH:-5}
out=${CARGO_TARGET_DIR:-target}
# GATEWAY names a program that is built already.
gateway=${GATEWAY:-$out/production/examples/ai_gateway}
[ -n "${GATEWAY:-}" ] || cargo build --quiet --profile production --example ai_gateway --features gateway,testing,redis
[ -n "${GATEWAY:-}" ] || cargo build --quiet --example fake_apple --example split_key

work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
port() { python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])'; }
provider=$(port) streams=$(port) proxy=$(port) ours=$(port)

# One answer of a chat, 700 bytes, for everybody.
answer=$(python3 -c 'import json; print(json.dumps({"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"word "*80},"finish_reason":"stop"}],"usage":{"prompt_tokens":20,"completion_tokens":80,"total_tokens":100}}))')
nginx_conf() {
  printf 'daemon off; worker_processes 1; pid %s/%s.pid; error_log %s/%s.log;\nevents { worker_connections 2048; }\nhttp { access_log off; keepalive_requests 100000000; client_body_temp_path %s/b; proxy_temp_path %s/p; fastcgi_temp_path %s/f; uwsgi_temp_path %s/u; scgi_temp_path %s/s;\n%s\n}\n' \
    "$work" "$1" "$work" "$1" "$work" "$work" "$work" "$work" "$work" "$2" >"$work/$1.conf"
}
nginx_conf provider "server { listen 127.0.0.1:$provider; location / { default_type application/json; return 200 '$answer'; } }"
nginx_conf proxy "upstream ai { server 127.0.0.1:$provider; keepalive 64; keepalive_requests 100000000; } upstream slow { server 127.0.0.1:$streams; keepalive 64; }
server { listen 127.0.0.1:$proxy; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off;
location / { proxy_pass http://ai; } location /v1/google/ { proxy_pass http://slow; } }"

cat >"$work/streams.py" <<'PY'
"""`serve PORT`: a provider that streams one event in 100 ms. `ask N URL HEADER…`: reads N streams, and says when all run."""
import asyncio, sys
from urllib.parse import urlsplit

async def answer(reader, writer):
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1b\r\n" + b'data: {"text":"hello  "}' + b"\n\n\n" + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.1)
    except (ConnectionError, asyncio.IncompleteReadError):
        writer.close()

async def read(url, headers, begun):
    url = urlsplit(url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = f"GET {url.path} HTTP/1.1\r\nhost: {url.netloc}\r\n" + "".join(f"{line}\r\n" for line in headers)
    writer.write(head.encode() + b"\r\n")
    line = await reader.readline()
    assert b"200" in line, line
    for _ in range(12):
        await reader.readline()
    begun.release()
    while await reader.read(65536): pass

async def main():
    if sys.argv[1] == "serve":
        server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[2]))
        await server.serve_forever()
    begun, count = asyncio.Semaphore(0), int(sys.argv[2])
    tasks = [asyncio.create_task(read(sys.argv[3], sys.argv[4:], begun)) for _ in range(count)]
    for _ in range(count): await begun.acquire()
    print("begun", flush=True)
    await asyncio.gather(*tasks)
asyncio.run(main())
PY

start() { "$@" & pids+=($!); last=$!; }
start taskset -c 1 nginx -c "$work/provider.conf"
start taskset -c 1 python3 "$work/streams.py" serve "$streams"
start taskset -c 0 nginx -c "$work/proxy.conf"
# The worker does the work.
for _ in $(seq 50); do nginx_pid=$(pgrep -P "$last" || true); [ -n "$nginx_pid" ] && break; sleep 0.1; done

LISTEN=127.0.0.1:0 start "$out/debug/examples/fake_apple" >"$work/apple"
for _ in $(seq 50); do grep -q '^export FAKE_APPLE' "$work/apple" && break; sleep 0.1; done
grep '^export ' "$work/apple" >"$work/env"
# shellcheck source=/dev/null
. "$work/env"
for name in openai google; do
  key=$([ $name = openai ] && echo sk-proj- || echo AIza)9aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3aB4cD5eF6g
  part=$(printf '%s\n' "$key" | "$out/debug/examples/split_key" add --file "$work/keys.json" --project app --provider $name 2>/dev/null)
  printf '%s' "$part" >"$work/$name"
done
LISTEN=127.0.0.1:$ours KEYS_FILE=$work/keys.json USAGE_FOLDER=none RUST_LOG=warn OPENAI_URL=http://127.0.0.1:$provider/v1 \
  GOOGLE_URL=http://127.0.0.1:$streams/v1 start taskset -c 0 "$gateway" >"$work/ours.out"
ours_pid=$last
for _ in $(seq 50); do curl -sf "http://127.0.0.1:$ours/health" >"$work/health" && break; sleep 0.1; done
token=$(curl -sf "$FAKE_APPLE/fake/token")
bearer="Authorization: Bearer $(cat "$work/openai").$token"

cat >"$work/chat.lua" <<'LUA'
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model":"m","messages":[{"role":"user","content":"' .. string.rep("word ", 40) .. '"}]}'
done = function(summary, _, requests)
  local bad = summary.errors.status + summary.errors.read + summary.errors.write + summary.errors.timeout
  print(string.format("result %d %.3f %d", summary.requests, summary.duration / 1e6, bad))
end
LUA
ticks() { awk '{print $14+$15}' "/proc/$1/stat"; }
# Prints requests a second and microseconds of the server's CPU time a request.
load() {
  local before result
  before=$(ticks "$1")
  result=$(taskset -c 1 wrk -t1 -c64 "-d${seconds}s" -s "$work/chat.lua" -H "$3" "$2" | grep '^result')
  read -r _ requests time bad <<<"$result"
  [ "$bad" = 0 ] || { echo "errors: $bad" >&2; exit 1; }
  python3 -c "print($requests/$time, ($(ticks "$1")-$before)*1e6/$(getconf CLK_TCK)/$requests)"
}
chat=/v1/openai/app/chat/completions
curl -sf -o /dev/null -H "$bearer" -H 'content-type: application/json' -d '{}' "http://127.0.0.1:$ours$chat"
for run in $(seq "$runs"); do
  load "$nginx_pid" "http://127.0.0.1:$proxy$chat" "$bearer" | sed "s/^/nginx $run /" | tee -a "$work/runs"
  load "$ours_pid" "http://127.0.0.1:$ours$chat" "$bearer" | sed "s/^/ours $run /" | tee -a "$work/runs"
done

# The others, where they are installed: one run each, after a request that they need to get ready.
master=sk-$(python3 -c "import secrets; print(secrets.token_hex(24))")
others() {
  local name=$1 port=$2 pid
  shift 2
  start taskset -c 0 "$@" >"$work/$name.out" 2>&1
  pid=$last
  for _ in $(seq 300); do curl -s -o /dev/null "http://127.0.0.1:$port/" && break; sleep 0.1; done
  curl -s -o /dev/null "${extra[@]}" -d '{"model":"m","messages":[]}' "http://127.0.0.1:$port/v1/chat/completions" || true
  for run in $(seq "$runs"); do
    load "$pid" "http://127.0.0.1:$port/v1/chat/completions" "Authorization: Bearer $master" | sed "s/^/$name $run /" >>"$work/runs"
  done
  kill "$pid"
}
if command -v litellm >/dev/null; then
  printf 'model_list: [{model_name: m, litellm_params: {model: openai/m, api_base: "http://127.0.0.1:%s/v1", api_key: sk-x}}]\ngeneral_settings: {master_key: %s}\n' "$provider" "$master" >"$work/litellm.yaml"
  extra=(-H 'content-type: application/json' -H "authorization: Bearer $master")
  p=$(port); others litellm "$p" litellm --config "$work/litellm.yaml" --port "$p" || echo "litellm: it failed"
else
  echo "litellm: not installed"
fi
if [ -n "${PORTKEY:-}" ]; then
  echo "wrk.headers['x-portkey-provider'] = 'openai'; wrk.headers['x-portkey-custom-host'] = 'http://127.0.0.1:$provider/v1'" >>"$work/chat.lua"
  extra=(-H 'content-type: application/json' -H 'x-portkey-provider: openai' -H "x-portkey-custom-host: http://127.0.0.1:$provider/v1")
  # shellcheck disable=SC2086
  p=$(port); others portkey "$p" $PORTKEY "--port=$p" || echo "Portkey's gateway: it failed"
else
  echo "Portkey's gateway: not installed"
fi

# Resident memory while 100 streams run.
resident() {
  start taskset -c 1 python3 "$work/streams.py" ask 100 "$2/v1/google/app/models" "$3" >"$work/begun"
  for _ in $(seq 200); do grep -q begun "$work/begun" && break; sleep 0.1; done
  grep -q begun "$work/begun" || { echo "the streams did not begin" >&2; exit 1; }
  awk '/VmRSS/ {print $2/1024}' "/proc/$1/status"
  kill "$last"
}
key="X-Goog-Api-Key: $(cat "$work/google").$token"
resident "$ours_pid" "http://127.0.0.1:$ours" "$key" >"$work/memory_ours"
resident "$nginx_pid" "http://127.0.0.1:$proxy" "$key" >"$work/memory_nginx"

python3 - "$work" <<'PY'
import statistics, sys
work = sys.argv[1]
rows = [line.split() for line in open(f"{work}/runs")]
median = lambda name, column: statistics.median(float(row[column]) for row in rows if row[0] == name)
memory = {name: float(open(f"{work}/memory_{name}").read()) for name in ("ours", "nginx")}
print(f"\n{'':8}{'requests/s':>12}{'CPU us/request':>16}{'MB at 100 streams':>20}")
for name in dict.fromkeys(row[0] for row in rows):
    resident = f"{memory[name]:20.1f}" if name in memory else ""
    print(f"{name:8}{median(name, 2):12.0f}{median(name, 3):16.1f}{resident}")
ratio, cpu = median("ours", 2) / median("nginx", 2), median("nginx", 3) / median("ours", 3)
for text, value, kept in [
    (f"requests a second, ours / nginx's: {ratio:.2f}, at least 0.5", ratio, ratio >= 0.5),
    (f"by CPU time a request: {cpu:.2f}", cpu, None),
    (f"resident memory at 100 streams: {memory['ours']:.1f} MB, under 30", memory["ours"], memory["ours"] < 30),
]:
    print(text + {True: ": kept", False: ": MISSED", None: ""}[kept])
PY
