"""Called by .ci/sdk: a fake of OpenAI, Anthropic and Google, and a relay in front of the gateway. The fake takes no
request but those with the right key, in the right place, and with nothing that should have stayed at the gateway.

Its answers show that the whole request came: a text is the digest of the question, a file comes back as it was.
`/test/…` is for the programs that call it: `secrets` takes what no provider may see, one a line; `relay` opens a relay
and names its URL; `requests` counts those that went through one; and `faults` lists what came since the last such call
and should not have, either way.
"""

import base64
import email
import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

KEYS = {name: os.environ[f"{name.upper()}_KEY"] for name in ["openai", "anthropic", "google"]}
KEY_HEADERS = {"openai": "authorization", "anthropic": "x-api-key", "google": "x-goog-api-key"}
HEADERS = """accept accept-encoding accept-language anthropic-beta anthropic-version connection content-length
    content-type host idempotency-key openai-beta transfer-encoding user-agent x-client-request-id x-goog-api-client
    x-server-timeout""".split()
HEADER_PREFIXES = ("x-goog-upload-", "x-stainless-")
ROUTES, SECRETS, FAULTS, RELAYED, STORED = [], [], [], {}, {}


class Refused(Exception):
    """The request is not as it should be."""


def digest(data):
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def longest(value):
    """The longest text in a JSON value: the question."""
    if isinstance(value, str):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return max(map(longest, inner), key=len, default="")


def pieces(text):
    return [text[at : at + 8] for at in range(0, len(text), 8)]


def route(methods, pattern):
    def add(answer):
        ROUTES.append((methods.split(), re.compile(pattern), answer))
        return answer

    return add


class Request:
    def __init__(self, handler, body):
        url = urlsplit(handler.path)
        self.method, self.path, self.body = handler.command, url.path, body
        self.query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.headers = handler.headers
        self.base = f"http://{handler.headers['host']}"

    @property
    def json(self):
        return json.loads(self.body or "{}")

    @property
    def question(self):
        return longest(self.json)

    @property
    def answer(self):
        """A text, or JSON if that is what the question asks for."""
        text = json.dumps(self.json)
        wants_json = re.search('"(json_schema|responseSchema|responseJsonSchema|output_format)"', text)
        return json.dumps({"digest": digest(self.question)}) if wants_json else digest(self.question)

    @property
    def form(self):
        """The parts of a multipart form: names and bytes, in order."""
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n"
        message = email.message_from_bytes(head.encode() + self.body)
        if not message.is_multipart():
            raise Refused("no multipart form")
        parts = [(part.get_param("name", header="content-disposition"), part) for part in message.get_payload()]
        return [(name, part.get_filename(), part.get_payload(decode=True)) for name, part in parts]

    @property
    def files(self):
        return [(filename, data) for _, filename, data in self.form if filename]


def check(provider, handler, body):
    """Raises unless the gateway did what it promises."""
    head = f"{handler.path}\n{handler.headers}"
    if any(secret in head.encode() + body for secret in SECRETS):
        raise Refused("a client part or a device token")
    names = [name.lower() for name in handler.headers]
    for name in names:
        if name not in HEADERS and name != KEY_HEADERS[provider] and not name.startswith(HEADER_PREFIXES):
            raise Refused(f"the header {name}")
        if names.count(name) > 1:
            raise Refused(f"the header {name} twice")
    scheme = "Bearer " if provider == "openai" else ""
    if handler.headers[KEY_HEADERS[provider]] != scheme + KEYS[provider]:
        raise Refused("another key")
    if sum((head.encode() + body).count(key.encode()) for key in KEYS.values()) != 1:
        raise Refused("a second key")
    if handler.headers.get("accept-encoding", "identity") != "identity":
        raise Refused("compressed answers")
    if provider == "anthropic" and not handler.headers["anthropic-version"]:
        raise Refused("no anthropic-version")
    if "key" in parse_qs(urlsplit(handler.path).query):
        raise Refused("the parameter key")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else the body of an answer waits for the acknowledgement of its head.
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def read(self):
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def do_GET(self):
        body = self.read()
        provider = self.path.split("/")[1]
        try:
            if provider in KEYS:
                check(provider, self, body)
            path = urlsplit(self.path).path
            for methods, pattern, answer in ROUTES:
                match = pattern.fullmatch(path)
                if match and self.command in methods:
                    return self.send(answer(Request(self, body), *match.groups()))
            raise Refused("no such endpoint")
        except Refused as error:
            fault = f"{self.command} {urlsplit(self.path).path}: the provider gets {error}"
            FAULTS.append(fault)
            self.send({"error": {"message": fault, "code": 400, "status": "INVALID_ARGUMENT"}}, 400)

    do_POST = do_DELETE = do_PATCH = do_PUT = do_GET

    def send(self, answer, status=200):
        """A dict is JSON, bytes are a file, a list is a stream of server-sent events. A tuple has headers before it,
        and may have a status after it."""
        if isinstance(answer, tuple):
            headers, answer, *rest = answer
            status = rest[0] if rest else status
        else:
            headers = {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if isinstance(answer, list):
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for event in answer:
                event = event.encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
            self.wfile.write(b"0\r\n\r\n")
            return
        kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def store(kind, **fields):
    name = f"{kind}-{len(STORED) + 1}"
    STORED[name] = {"id": name, **fields}
    return STORED[name]


def stored(name):
    if name not in STORED:
        raise Refused(f"a name that it did not give: {name}")
    return STORED[name]


def shown(thing):
    """Without what is for the fake itself."""
    return {name: value for name, value in thing.items() if not name.startswith("_")}


def listed(request, kind, **more):
    if request.query.get("limit") != "2":
        raise Refused(f"another limit: {request.query}")
    things = [shown(thing) for name, thing in STORED.items() if name.startswith(f"{kind}-")][-2:]
    return {"object": "list", "data": things, "has_more": False, "first_id": None, "last_id": None, **more}


# OpenAI.


def completion(model, kind="chat.completion", **choice):
    choices = [{"index": 0, "finish_reason": "stop", "logprobs": None, **choice}]
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return {"id": "chat-1", "object": kind, "created": 1, "model": model, "choices": choices, "usage": usage}


@route("POST", "/openai/v1/chat/completions")
def chat(request):
    model = request.json["model"]
    if not request.json.get("stream"):
        return completion(model, message={"role": "assistant", "content": request.answer, "refusal": None})
    chunks = [
        completion(model, "chat.completion.chunk", delta={"role": "assistant", "content": piece}, finish_reason=None)
        for piece in pieces(request.answer)
    ]
    chunks.append(completion(model, "chat.completion.chunk", delta={}))
    return [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]


def response(request, status, text):
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"id": "msg-1", "type": "message", "status": status, "role": "assistant", "content": content}
    return {
        "id": "resp-1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": request.json.get("model", "model-1"),
        "output": [message] if text else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


@route("POST", "/openai/v1/responses")
def responses(request):
    text = request.answer
    if not request.json.get("stream"):
        return response(request, "completed", text)
    place = {"item_id": "msg-1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    item = {"id": "msg-1", "type": "message", "status": "in_progress", "role": "assistant", "content": []}
    events = [
        {"type": "response.created", "response": response(request, "in_progress", "")},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": part},
        *({"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []} for piece in pieces(text)),
        {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
        {"type": "response.completed", "response": response(request, "completed", text)},
    ]
    return [
        f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': number})}\n\n"
        for number, event in enumerate(events)
    ]


@route("GET DELETE", "/openai/v1/responses/resp-1")
def one_response(request):
    if request.method == "DELETE":
        return {}
    if request.query.get("include[]", request.query.get("include")) != "reasoning.encrypted_content":
        raise Refused(f"another include: {request.query}")
    return response(request, "completed", "again")


@route("POST", "/openai/v1/responses/input_tokens")
def input_tokens(request):
    return {"object": "response.input_tokens", "input_tokens": len(request.question)}


@route("POST", "/openai/v1/embeddings")
def embeddings(request):
    vector = [0.5, -1.0, float(len(request.question))]
    if request.json.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack("<3f", *vector)).decode()
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    return {"object": "list", "model": "model-1", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


@route("POST", "/openai/v1/moderations")
def moderations(request):
    return {"id": "mod-1", "model": "model-1", "results": [{"flagged": True, "categories": {}, "category_scores": {}}]}


@route("GET", "/(openai|anthropic)/v1/models")
def models(request, provider):
    data = [{"id": name, "object": "model", "type": "model", "created": 1} for name in ["model-1", "model-2"]]
    return {"object": "list", "data": data, "has_more": False, "first_id": "model-1", "last_id": "model-2"}


@route("GET", "/(openai|anthropic)/v1/models/model-1")
def model(request, provider):
    return {"id": "model-1", "object": "model", "type": "model", "created": 1}


@route("GET", "/[a-z]+/(?:v1|v1beta)/models/(busy|refused)-([a-z]+)")
def failing_model(request, why, name):
    """One that is busy at first, and one that the key may not use."""
    if why == "refused":
        return {}, {"error": {"message": "not with this key"}}, 401
    if name not in STORED:
        STORED[name] = {}
        return {"retry-after-ms": "10"}, {"error": {"message": "not so fast"}}, 429
    return {"id": "busy", "object": "model", "type": "model", "created": 1, "name": "models/busy"}


@route("POST", "/openai/v1/audio/speech")
def speech(request):
    return digest(request.question).encode() * 4096


@route("POST", "/openai/v1/audio/transcriptions")
def transcription(request):
    [(_, audio)] = request.files
    return {"text": digest(audio)}


def pictures(pictures):
    return {"created": 1, "data": [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures]}


@route("POST", "/openai/v1/images/generations")
def generate_image(request):
    return pictures([digest(request.question).encode()])


@route("POST", "/openai/v1/images/edits")
def edit_image(request):
    return pictures([data for _, data in request.files])


@route("POST", "/openai/v1/batches")
def new_batch(request):
    lines = [json.loads(line) for line in stored(request.json["input_file_id"])["_data"].splitlines()]
    lines = [{"custom_id": line["custom_id"], "response": {"body": digest(longest(line["body"]))}} for line in lines]
    output = store("file", object="file", _data="\n".join(map(json.dumps, lines)).encode())
    given = {name: request.json[name] for name in ["endpoint", "input_file_id", "completion_window"]}
    return store("batch", object="batch", status="completed", created_at=1, output_file_id=output["id"], **given)


@route("GET", "/openai/v1/batches")
def batches(request):
    return listed(request, "batch")


@route("GET POST", "/openai/v1/batches/(batch-[0-9]+)(/cancel)?")
def batch(request, name, cancel):
    return {**stored(name), "status": "cancelled"} if cancel else stored(name)


# Files are alike at OpenAI and Anthropic.


@route("GET POST", "/(openai|anthropic)/v1/files")
def files(request, _):
    if request.method == "GET":
        return listed(request, "file")
    [(filename, data)] = request.files
    form = {name: value.decode() for name, other, value in request.form if not other}
    about = {"object": "file", "type": "file", "filename": filename, "bytes": len(data), "size_bytes": len(data)}
    about |= {"created_at": 1, "status": "processed", "mime_type": "text/plain", "purpose": form.get("purpose")}
    return shown(store("file", _data=data, **about))


@route("GET DELETE", "/(openai|anthropic)/v1/files/(file-[0-9]+)")
def file(request, _, name):
    found = stored(name)
    if request.method == "GET":
        return shown(found)
    del found["_data"]
    return {"id": name, "object": "file", "type": "file_deleted", "deleted": True}


@route("GET", "/(openai|anthropic)/v1/files/(file-[0-9]+)/content")
def content(request, _, name):
    return stored(name)["_data"]


# Anthropic.


def message(model, text, reason="end_turn"):
    content = [{"type": "text", "text": text}] if text else []
    usage = {"input_tokens": 1, "output_tokens": 2}
    end = {"stop_reason": reason, "stop_sequence": None, "usage": usage}
    return {"id": "msg-1", "type": "message", "role": "assistant", "model": model, "content": content, **end}


@route("POST", "/anthropic/v1/messages")
def messages(request):
    model = request.json["model"]
    if not request.json.get("stream"):
        return message(model, request.answer)
    events = [
        {"type": "message_start", "message": message(model, "", None)},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
            for piece in pieces(request.answer)
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]


@route("POST", "/anthropic/v1/messages/count_tokens")
def count_tokens(request):
    return {"input_tokens": len(request.question)}


@route("GET POST", "/anthropic/v1/messages/batches")
def message_batches(request):
    if request.method == "GET":
        return listed(request, "msgbatch")
    made = store("msgbatch", type="message_batch", processing_status="ended", _requests=request.json["requests"])
    made["results_url"] = f"{request.base}/anthropic/v1/messages/batches/{made['id']}/results"
    return shown(made)


@route("GET POST DELETE", "/anthropic/v1/messages/batches/(msgbatch-[0-9]+)(/cancel)?")
def message_batch(request, name, cancel):
    if request.method == "DELETE":
        return {"id": name, "type": "message_batch_deleted"}
    return {**shown(stored(name)), **({"processing_status": "canceling"} if cancel else {})}


@route("GET", "/anthropic/v1/messages/batches/(msgbatch-[0-9]+)/results")
def results(request, name):
    lines = [
        {
            "custom_id": asked["custom_id"],
            "result": {"type": "succeeded", "message": message("model-1", digest(longest(asked["params"])))},
        }
        for asked in stored(name)["_requests"]
    ]
    return {"content-type": "application/x-jsonl"}, "".join(json.dumps(line) + "\n" for line in lines).encode()


# Google.


def candidate(text):
    content = {"role": "model", "parts": [{"text": text}]}
    return {"candidates": [{"index": 0, "content": content, "finishReason": "STOP"}]}


@route("POST", "/google/(?:v1|v1beta)/models/model-1:([a-zA-Z]+)")
def google(request, call):
    asked = request.json
    match call:
        case "generateContent":
            inline = [part["inlineData"]["data"] for part in asked["contents"][0]["parts"] if "inlineData" in part]
            # Python's SDK has the alphabet for URLs, node's the other.
            inline = [base64.urlsafe_b64decode(data.replace("+", "-").replace("/", "_")) for data in inline]
            return candidate(digest(inline[0]) if inline else request.answer)
        case "streamGenerateContent":
            if request.query != {"alt": "sse"}:
                raise Refused(f"another query: {request.query}")
            return [f"data: {json.dumps(candidate(piece))}\r\n\r\n" for piece in pieces(request.answer)]
        case "batchEmbedContents":
            return {"embeddings": [{"values": [0.5, -1.0, len(request.question)]} for _ in asked["requests"]]}
        case "embedContent":
            return {"embedding": {"values": [0.5, -1.0, len(request.question)]}}
        case "countTokens":
            return {"totalTokens": len(request.question)}
        case "batchGenerateContent":
            asked = asked["batch"]["inputConfig"]["requests"]["requests"]
            answers = [{"response": candidate(digest(longest(one["request"])))} for one in asked]
            made = store("gbatch", _answers=answers)
            return google_batch(request, made["id"])
    raise Refused(f"no such call: {call}")


@route("GET", "/google/(?:v1|v1beta)/batches/(gbatch-[0-9]+)")
def google_batch(request, name):
    done = {"inlinedResponses": {"inlinedResponses": stored(name)["_answers"]}}
    metadata = {"model": "models/model-1", "state": "BATCH_STATE_SUCCEEDED", "output": done}
    return {"name": f"batches/{name}", "done": True, "metadata": metadata, "response": done}


@route("POST", "/google/(?:v1|v1beta)/interactions")
def interactions(request):
    if request.json.get("stream"):
        deltas = [{"type": "text", "text": piece} for piece in pieces(request.answer)]
        events = [{"event_type": "step.delta", "index": 0, "delta": delta} for delta in deltas]
        return [f"event: {event['event_type']}\ndata: {json.dumps(event)}\n\n" for event in events]
    step = {"type": "model_output", "content": [{"type": "text", "text": request.answer}]}
    return {"id": "int-1", "model": "model-1", "status": "completed", "steps": [step]}


@route("GET", "/google/(?:v1|v1beta)/interactions/int-1")
def get_interaction(request):
    return {"id": "int-1", "model": "model-1", "status": "completed", "steps": []}


@route("DELETE", "/google/(?:v1|v1beta)/interactions/int-1")
def delete_interaction(request):
    return {}


@route("GET", "/google/(?:v1|v1beta)/models")
def google_models(request):
    if request.query != {"pageSize": "2"}:
        raise Refused(f"another query: {request.query}")
    return {"models": [{"name": "models/model-1"}, {"name": "models/model-2"}]}


@route("GET", "/google/(?:v1|v1beta)/models/model-1")
def google_model(request):
    return {"name": "models/model-1", "displayName": "Model 1"}


@route("POST", "/google/upload/(?:v1|v1beta)/files")
def google_upload(request):
    return {"X-Goog-Upload-URL": f"{request.base}{request.path}?upload_id=1", "X-Goog-Upload-Status": "active"}, {}


@route("GET", "/google/(?:v1|v1beta)/files")
def google_files(request):
    return {"files": [{"name": "files/made", "mimeType": "text/plain"}]}


@route("GET DELETE", "/google/(?:v1|v1beta)/files/made")
def google_file(request):
    link = f"{request.base}/google/v1beta/files/made:download?alt=media"
    return {} if request.method == "DELETE" else {"name": "files/made", "source": "GENERATED", "downloadUri": link}


@route("GET", "/google/(?:v1|v1beta)/files/made:download")
def google_download(request):
    if request.query != {"alt": "media"}:
        raise Refused(f"another query: {request.query}")
    return b"made by Google" * 1000


@route("GET POST", "/google/(?:v1|v1beta)/cachedContents")
def caches(request):
    if request.method == "GET":
        return {"cachedContents": [{"name": "cachedContents/one"}]}
    return {"name": "cachedContents/one", "displayName": digest(request.question)}


@route("GET PATCH DELETE", "/google/(?:v1|v1beta)/cachedContents/one")
def cache(request):
    if request.method == "PATCH" and request.query != {"updateMask": "ttl"}:
        return {"name": "cachedContents/one", "displayName": f"updated {request.query}"}
    return {} if request.method == "DELETE" else {"name": "cachedContents/one", "displayName": "again"}


# For the programs that call.


@route("POST", "/test/secrets")
def secrets(request):
    SECRETS.extend(request.body.split())
    return {}


def relay(client, gateway, relayed):
    """Passes the bytes of one connection on, and keeps them."""
    server = socket.create_connection(gateway)
    up, down = bytearray(), bytearray()
    relayed.append((up, down))

    def pump(source, sink, seen):
        try:
            while data := source.recv(1 << 16):
                seen += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    for way in [(client, server, up), (server, client, down)]:
        threading.Thread(target=pump, args=way, daemon=True).start()


@route("POST", "/test/relay")
def new_relay(request):
    """The body is the URL of the gateway."""
    gateway = urlsplit(request.body.decode())
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    relayed = RELAYED[port] = []

    def accept():
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            relay(client, (gateway.hostname, gateway.port), relayed)

    threading.Thread(target=accept, daemon=True).start()
    return {"url": f"http://127.0.0.1:{port}", "port": port}


@route("GET", "/test/requests/([0-9]+)")
def requests(request, port):
    """Their number, and each time to wait that the gateway named."""
    up, down = (b"".join(way) for way in zip(*RELAYED[int(port)], strict=True)) if RELAYED[int(port)] else (b"", b"")
    waits = re.findall(rb"^retry-after: ([0-9]+)", down, re.I | re.M)
    return {"count": len(re.findall(rb"[A-Z]+ /\S* HTTP/1\.1\r\n", up)), "waits": [int(wait) for wait in waits]}


@route("GET", "/test/faults")
def faults(request):
    found = FAULTS[:]
    FAULTS.clear()
    for _, down in sum(RELAYED.values(), []):
        found += [f"the client gets {provider}'s key" for provider, key in KEYS.items() if key.encode() in down]
        if b"upload_id=" in down:
            found.append("the client gets an upload URL")
    return {"faults": found}


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("http://{}:{}".format(*server.server_address), flush=True)
sys.exit(server.serve_forever())
