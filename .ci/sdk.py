"""Called by .ci/sdk. The base URL and the API key are all that the SDKs are told."""

import base64
import concurrent.futures
import hashlib
import io
import json
import os
import sys
import time
import urllib.request
from importlib.metadata import version

import anthropic
import openai
import pydantic
from google import genai

PROVIDER = os.environ["PROVIDER"]
APPLE = os.environ["APPLE"]
EXPECTED = "Hello from a fake provider."
QUESTION = "Grüße an alle Anbieter. " * 4000
ANSWER = hashlib.sha256(QUESTION.encode()).hexdigest()
ASK = [{"role": "user", "content": QUESTION}]
FILE = os.urandom(300_000)
# They should not come to the provider.
STAY = {
    "Cookie": "session=1",
    "Forwarded": "for=192.0.2.1",
    "OpenAI-Organization": "org-1",
    "Origin": "https://app.example",
    "Referer": "https://app.example/page",
    "X-Forwarded-For": "192.0.2.1",
    "X-HTTP-Method-Override": "DELETE",
}
CALLS, OUTAGES = {}, {}


class Digest(pydantic.BaseModel):
    digest: str


def ask(url, body=None):
    with urllib.request.urlopen(url, body) as answer:
        return answer.read()


class Relay:
    """In front of a gateway: it counts requests, and looks at answers."""

    def __init__(self, gateway):
        made = json.loads(ask(f"{PROVIDER}/test/relay", gateway.encode()))
        self.url, self.port = made["url"], made["port"]

    def seen(self):
        """The number of requests, and the seconds that each answer of 503 says to wait."""
        seen = json.loads(ask(f"{PROVIDER}/test/requests/{self.port}"))
        return seen["count"], seen["waits"]

    def requests(self):
        return self.seen()[0]


def faults():
    return json.loads(ask(f"{PROVIDER}/test/faults"))["faults"]


def same(found, expected):
    assert found == expected, f"{str(found)[:100]!r} and not {str(expected)[:100]!r}"


def call(sdk, name):
    def add(function):
        CALLS.setdefault(sdk, {})[name] = function

    return add


def run_calls():
    """Each in turn, and a line for each SDK."""
    failed = False
    # The SDKs wait, so they do so all at once.
    pool = concurrent.futures.ThreadPoolExecutor()
    for sdk, outage in OUTAGES.items():
        CALLS[sdk]["an outage of Apple"] = pool.submit(outage).result
    for sdk, calls in CALLS.items():
        works = []
        for name, function in calls.items():
            try:
                note = function()
                same(faults(), [])
                works.append(f"{name} ({note})" if note else name)
            except Exception as error:
                failed = True
                print(f"{sdk} {version(sdk)}, {name}: {type(error).__name__}: {error}; {faults()}")
        print(f"{sdk} {version(sdk)}, {len(works)} of {len(calls)}: {'; '.join(works)}")
    return failed


def refusal(requests, make, failure, status, relay):
    """Counts the requests of a call that fails."""
    before = relay.requests()
    try:
        make()
    except failure as error:
        same((getattr(error, "status_code", None) or error.code, relay.requests() - before), (status, requests))
        return f"{type(error).__name__} after {requests}"
    raise AssertionError("the gateway answered")


def refusals(sdk, client_of, model, failures):
    """The calls that fail. Google's SDK repeats none, the others those that may work later."""
    unauthorized, unavailable = failures
    retries = sdk != "google-genai"

    def get(client, name):
        return client.models.get(model=name) if sdk == "google-genai" else client.models.retrieve(name)

    @call(sdk, "a forged device token")
    def _():
        client = client_of(RELAY, ask(f"{APPLE}/forged").decode().strip())
        return refusal(1, lambda: get(client, "model-1"), unauthorized, 401, RELAY)

    @call(sdk, "a key that the provider refuses")
    def _():
        client = client_of(RELAY, TOKEN)
        return refusal(1, lambda: get(client, f"refused-{model}"), unavailable, 502, RELAY)

    if retries:

        @call(sdk, "a busy provider")
        def _():
            before = RELAY.requests()
            get(client_of(RELAY, TOKEN), f"busy-{model}")
            same(RELAY.requests() - before, 2)

    def outage():
        relay = Relay(os.environ["DOWN_GATEWAY"])
        client = client_of(relay, ask(f"{os.environ['DOWN_APPLE']}/token?device={sdk}").decode().strip())
        begun = time.monotonic()
        found = refusal(1 + retries, lambda: get(client, "model-1"), unavailable, 503, relay)
        took, (_, waits) = time.monotonic() - begun, relay.seen()
        same(len(waits), 1 + retries)
        assert not retries or took >= waits[0], f"it waited {took} s and not {waits} s"
        return found

    OUTAGES[sdk] = outage


# The gateway and its own fake provider, as a newcomer starts them.


def demo():
    def check(name, found):
        assert found == EXPECTED, f"{name}: {found!r}"
        print(f"{name}: {found}")

    gateway = os.environ["DEMO_GATEWAY"]
    key = os.environ["DEMO_OPENAI"]
    ask = [{"role": "user", "content": "hello"}]
    client = openai.OpenAI(base_url=f"{gateway}/v1/openai/demo", api_key=key)
    answer = client.chat.completions.create(model="fake-1", messages=ask)
    check("openai, a completion", answer.choices[0].message.content)
    stream = client.chat.completions.create(model="fake-1", messages=ask, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(pieces) > 5, pieces
    check("openai, a stream", "".join(pieces))

    # The project may be in a header instead.
    header = {"X-Project-Id": "demo"}
    client = openai.OpenAI(base_url=f"{gateway}/v1/openai", api_key=key, default_headers=header)
    answer = client.chat.completions.create(model="fake-1", messages=ask)
    check("openai, the project in a header", answer.choices[0].message.content)

    # Earlier versions of the SDK send `api_key` in X-Api-Key; see below.
    key = os.environ["DEMO_ANTHROPIC"]
    for name in ["api_key", "auth_token"]:
        client = anthropic.Anthropic(base_url=f"{gateway}/v1/anthropic/demo", **{name: key})
        answer = client.messages.create(model="fake-1", max_tokens=9, messages=ask)
        check(f"anthropic with {name}, a message", answer.content[0].text)
        with client.messages.stream(model="fake-1", max_tokens=9, messages=ask) as stream:
            pieces = list(stream.text_stream)
        assert len(pieces) == 5, pieces
        check(f"anthropic with {name}, a stream", "".join(pieces))

    # `api_version` would put one before the project.
    options = {"base_url": f"{gateway}/v1/google/demo/", "api_version": ""}
    client = genai.Client(api_key=os.environ["DEMO_GOOGLE"], http_options=options)
    answer = client.models.generate_content(model="fake-1", contents="hello")
    check("google, an answer", answer.text)
    pieces = [chunk.text for chunk in client.models.generate_content_stream(model="fake-1", contents="hello")]
    assert len(pieces) == 5, pieces
    check("google, a stream", "".join(pieces))

    # What they make of a refusal.
    key = os.environ["DEMO_OPENAI"] + "AAAA"
    client = openai.OpenAI(base_url=f"{gateway}/v1/openai/demo", api_key=key, max_retries=0)
    try:
        client.models.list()
        raise SystemExit("a forged device token was accepted")
    except openai.AuthenticationError as error:
        print(f"openai, a forged device token: {error.status_code} {error.body['code']}")


demo()
RELAY = Relay(os.environ["GATEWAY"])
TOKEN = os.environ["TOKEN"]


# OpenAI.


def openai_client(relay, token):
    key = f"{os.environ['OPENAI_PART']}.{token}"
    url = f"{relay.url}/v1/openai/demo"
    return openai.OpenAI(base_url=url, api_key=key, default_headers=STAY, max_retries=1)


client = openai_client(RELAY, TOKEN)


@call("openai", "chat")
def _():
    same(client.chat.completions.create(model="model-1", messages=ASK).choices[0].message.content, ANSWER)


@call("openai", "chat, streamed")
def _():
    stream = client.chat.completions.create(model="model-1", messages=ASK, stream=True)
    pieces = [chunk.choices[0].delta.content for chunk in stream]
    same((len(pieces), "".join(piece or "" for piece in pieces)), (9, ANSWER))


@call("openai", "chat, structured")
def _():
    answer = client.chat.completions.parse(model="model-1", messages=ASK, response_format=Digest)
    same(answer.choices[0].message.parsed, Digest(digest=ANSWER))


@call("openai", "responses")
def _():
    same(client.responses.create(model="model-1", input=QUESTION).output_text, ANSWER)
    again = client.responses.retrieve("resp-1", include=["reasoning.encrypted_content"])
    same(again.output_text, "again")
    client.responses.delete("resp-1")
    same(client.responses.input_tokens.count(model="model-1", input=QUESTION).input_tokens, len(QUESTION))


@call("openai", "responses, streamed")
def _():
    with client.responses.stream(model="model-1", input=QUESTION) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        same((len(pieces), "".join(pieces)), (8, ANSWER))
        same(stream.get_final_response().output_text, ANSWER)


@call("openai", "responses, structured")
def _():
    answer = client.responses.parse(model="model-1", input=QUESTION, text_format=Digest)
    same(answer.output_parsed, Digest(digest=ANSWER))


@call("openai", "embeddings")
def _():
    answer = client.embeddings.create(model="model-1", input=QUESTION)
    same(answer.data[0].embedding, [0.5, -1.0, float(len(QUESTION))])


@call("openai", "files")
def _():
    made = client.files.create(file=("data.bin", FILE), purpose="user_data")
    same((made.bytes, made.filename, made.purpose), (len(FILE), "data.bin", "user_data"))
    same(client.files.content(made.id).content, FILE)
    same(client.files.retrieve(made.id).id, made.id)
    same(client.files.list(limit=2, order="asc", purpose="user_data").data[-1].id, made.id)
    same(client.files.delete(made.id).deleted, True)


@call("openai", "images")
def _():
    made = client.images.generate(model="model-1", prompt=QUESTION)
    same(base64.b64decode(made.data[0].b64_json), ANSWER.encode())
    pictures = [("one.png", FILE, "image/png"), ("two.png", FILE[::-1], "image/png")]
    made = client.images.edit(model="model-1", image=pictures, prompt="as they are")
    same([base64.b64decode(picture.b64_json) for picture in made.data], [FILE, FILE[::-1]])


@call("openai", "speech")
def _():
    expected = ANSWER.encode() * 4096
    speech = {"model": "model-1", "voice": "alloy", "input": QUESTION}
    same(client.audio.speech.create(**speech).content, expected)
    with client.audio.speech.with_streaming_response.create(**speech) as answer:
        same(b"".join(answer.iter_bytes()), expected)


@call("openai", "transcription")
def _():
    text = client.audio.transcriptions.create(model="model-1", file=("voice.wav", FILE)).text
    same(text, hashlib.sha256(FILE).hexdigest())


@call("openai", "batches")
def _():
    line = {"custom_id": "one", "method": "POST", "url": "/v1/responses", "body": {"input": QUESTION}}
    file = client.files.create(file=("batch.jsonl", json.dumps(line).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    same(client.batches.list(limit=2).data[-1].id, made.id)
    done = client.batches.retrieve(made.id)
    same(json.loads(client.files.content(done.output_file_id).text)["response"]["body"], ANSWER)
    same(client.batches.cancel(made.id).status, "cancelled")


@call("openai", "models")
def _():
    same([model.id for model in client.models.list()], ["model-1", "model-2"])
    same(client.models.retrieve("model-1").id, "model-1")


@call("openai", "moderations")
def _():
    same(client.moderations.create(input=QUESTION).results[0].flagged, True)


FAILURES = (openai.AuthenticationError, openai.InternalServerError)
refusals("openai", openai_client, "python", FAILURES)


# Anthropic.


def claude_client(relay, token):
    key = f"{os.environ['ANTHROPIC_PART']}.{token}"
    url = f"{relay.url}/v1/anthropic/demo"
    return anthropic.Anthropic(base_url=url, api_key=key, default_headers=STAY, max_retries=1)


claude = claude_client(RELAY, TOKEN)
LIMITED = {"model": "model-1", "max_tokens": 9, "messages": ASK}


@call("anthropic", "messages")
def _():
    same(claude.messages.create(**LIMITED).content[0].text, ANSWER)


@call("anthropic", "messages, the key in another header")
def _():
    # Earlier versions of the SDK use this one.
    headers = {"X-Api-Key": claude.api_key}
    other = anthropic.Anthropic(base_url=claude.base_url, api_key=None, default_headers=headers)
    same(other.messages.create(**LIMITED).content[0].text, ANSWER)


@call("anthropic", "messages, streamed")
def _():
    with claude.messages.stream(**LIMITED) as stream:
        pieces = list(stream.text_stream)
    same((len(pieces), "".join(pieces)), (8, ANSWER))


@call("anthropic", "messages, structured")
def _():
    same(claude.messages.parse(**LIMITED, output_format=Digest).parsed_output, Digest(digest=ANSWER))


@call("anthropic", "count tokens")
def _():
    same(claude.messages.count_tokens(model="model-1", messages=ASK).input_tokens, len(QUESTION))


@call("anthropic", "files")
def _():
    for api in [claude.files, claude.beta.files]:
        made = api.upload(file=("data.bin", FILE))
        same((made.size_bytes, made.filename), (len(FILE), "data.bin"))
        same(api.download(made.id).read(), FILE)
        same(api.retrieve_metadata(made.id).id, made.id)
        same(api.list(limit=2).data[-1].id, made.id)
        same(api.delete(made.id).id, made.id)


@call("anthropic", "batches")
def _():
    asked = [{"custom_id": "one", "params": LIMITED}]
    made = claude.messages.batches.create(requests=asked)
    same(claude.messages.batches.retrieve(made.id).processing_status, "ended")
    same(claude.messages.batches.list(limit=2).data[-1].id, made.id)
    same(claude.messages.batches.cancel(made.id).processing_status, "canceling")
    # The same as `results` below.
    lines = claude.get(f"/v1/messages/batches/{made.id}/results", cast_to=str)
    same(json.loads(lines)["result"]["message"]["content"][0]["text"], ANSWER)
    same(claude.messages.batches.delete(made.id).id, made.id)


@call("anthropic", "batches.results()")
def _():
    made = claude.messages.batches.create(requests=[{"custom_id": "one", "params": LIMITED}])
    before = RELAY.requests()
    results = list(claude.messages.batches.results(made.id))
    same(results[0].result.message.content[0].text, ANSWER)
    # The first one asks where the results are. Both pass the gateway.
    same(RELAY.requests() - before, 2)


@call("anthropic", "models")
def _():
    same([model.id for model in claude.models.list()], ["model-1", "model-2"])
    same(claude.models.retrieve("model-1").id, "model-1")


FAILURES = (anthropic.AuthenticationError, anthropic.InternalServerError)
refusals("anthropic", claude_client, "claude", FAILURES)


# Google.


def google_client(relay, token):
    options = {"base_url": f"{relay.url}/v1/google/demo", "headers": STAY}
    return genai.Client(api_key=f"{os.environ['GOOGLE_PART']}.{token}", http_options=options)


gemini = google_client(RELAY, TOKEN)


@call("google-genai", "generate content")
def _():
    same(gemini.models.generate_content(model="model-1", contents=QUESTION).text, ANSWER)


@call("google-genai", "generate content, streamed")
def _():
    pieces = [chunk.text for chunk in gemini.models.generate_content_stream(model="model-1", contents=QUESTION)]
    same((len(pieces), "".join(pieces)), (8, ANSWER))


@call("google-genai", "generate content, structured")
def _():
    config = {"response_mime_type": "application/json", "response_schema": Digest}
    answer = gemini.models.generate_content(model="model-1", contents=QUESTION, config=config)
    same(answer.parsed, Digest(digest=ANSWER))


@call("google-genai", "interactions")
def _():
    made = gemini.interactions.create(model="model-1", input=QUESTION)
    same(made.output_text, ANSWER)
    same(gemini.interactions.get(made.id).id, made.id)
    gemini.interactions.delete(made.id)
    events = gemini.interactions.create(model="model-1", input=QUESTION, stream=True)
    pieces = [event.delta.text for event in events]
    same((len(pieces), "".join(pieces)), (8, ANSWER))


@call("google-genai", "images and audio within a question")
def _():
    for kind in ["image/png", "audio/wav"]:
        part = genai.types.Part.from_bytes(data=FILE, mime_type=kind)
        answer = gemini.models.generate_content(model="model-1", contents=[part, "what is it?"])
        same(answer.text, hashlib.sha256(FILE).hexdigest())


@call("google-genai", "embeddings")
def _():
    answer = gemini.models.embed_content(model="model-1", contents=QUESTION)
    same(answer.embeddings[0].values, [0.5, -1.0, float(len(QUESTION))])


@call("google-genai", "count tokens")
def _():
    same(gemini.models.count_tokens(model="model-1", contents=QUESTION).total_tokens, len(QUESTION))


@call("google-genai", "files, but for uploads")
def _():
    same([file.name for file in gemini.files.list(config={"page_size": 2})], ["files/made"])
    made = gemini.files.get(name="files/made")
    same(gemini.files.download(file=made), b"made by Google" * 1000)
    gemini.files.delete(name="files/made")


@call("google-genai", "an upload fails")
def _():
    # The second request would go around the gateway.
    before = RELAY.requests()
    try:
        gemini.files.upload(file=io.BytesIO(FILE), config={"mime_type": "text/plain"})
    except genai.errors.ServerError as error:
        same((RELAY.requests() - before, error.code), (1, 501))
        return f"{type(error).__name__}: {error.code}"
    raise AssertionError("the upload worked")


@call("google-genai", "caches")
def _():
    made = gemini.caches.create(model="model-1", config={"contents": QUESTION, "ttl": "60s"})
    same(made.display_name, ANSWER)
    same(gemini.caches.get(name=made.name).display_name, "again")
    gemini.caches.update(name=made.name, config={"ttl": "90s"})
    same([cache.name for cache in gemini.caches.list(config={"page_size": 2})], [made.name])
    gemini.caches.delete(name=made.name)


@call("google-genai", "batches")
def _():
    asked = [{"contents": [{"role": "user", "parts": [{"text": QUESTION}]}]}]
    made = gemini.batches.create(model="model-1", src=asked)
    done = gemini.batches.get(name=made.name)
    same(done.state.name, "JOB_STATE_SUCCEEDED")
    same(done.dest.inlined_responses[0].response.text, ANSWER)


@call("google-genai", "models")
def _():
    names = [model.name for model in gemini.models.list(config={"page_size": 2, "query_base": True})]
    same(names, ["models/model-1", "models/model-2"])
    same(gemini.models.get(model="model-1").display_name, "Model 1")


FAILURES = (genai.errors.ClientError, genai.errors.ServerError)
refusals("google-genai", google_client, "gemini", FAILURES)

sys.exit(run_calls())
