"""Called by .ci/sdk. The base URL and the API key are all that the SDKs are told."""

import os
from importlib.metadata import version

import anthropic
import openai
from google import genai

GATEWAY = os.environ["GATEWAY"]
OPENAI = os.environ["OPENAI_PART"]
ANTHROPIC = os.environ["ANTHROPIC_PART"]
GOOGLE = os.environ["GOOGLE_PART"]
EXPECTED = "Hello from a fake provider."
ASK = [{"role": "user", "content": "hello"}]


def check(name, found):
    assert found == EXPECTED, f"{name}: {found!r}"
    print(f"{name}: {found}")


print(", ".join(f"{name} {version(name)}" for name in ["openai", "anthropic", "google-genai"]))

client = openai.OpenAI(base_url=f"{GATEWAY}/v1/openai/demo", api_key=OPENAI)
answer = client.chat.completions.create(model="fake-1", messages=ASK)
check("openai, a completion", answer.choices[0].message.content)
stream = client.chat.completions.create(model="fake-1", messages=ASK, stream=True)
pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
assert len(pieces) > 5, pieces
check("openai, a stream", "".join(pieces))

# The project may be in a header instead.
header = {"X-Project-Id": "demo"}
client = openai.OpenAI(base_url=f"{GATEWAY}/v1/openai", api_key=OPENAI, default_headers=header)
answer = client.chat.completions.create(model="fake-1", messages=ASK)
check("openai, the project in a header", answer.choices[0].message.content)

# `api_key` goes into X-Api-Key, `auth_token` into Authorization: Bearer.
for name in ["api_key", "auth_token"]:
    client = anthropic.Anthropic(base_url=f"{GATEWAY}/v1/anthropic/demo", **{name: ANTHROPIC})
    answer = client.messages.create(model="fake-1", max_tokens=9, messages=ASK)
    check(f"anthropic with {name}, a message", answer.content[0].text)
    with client.messages.stream(model="fake-1", max_tokens=9, messages=ASK) as stream:
        pieces = list(stream.text_stream)
    assert len(pieces) == 5, pieces
    check(f"anthropic with {name}, a stream", "".join(pieces))

# `api_version` would put one before the project.
options = {"base_url": f"{GATEWAY}/v1/google/demo/", "api_version": ""}
client = genai.Client(api_key=GOOGLE, http_options=options)
answer = client.models.generate_content(model="fake-1", contents="hello")
check("google, an answer", answer.text)
pieces = [chunk.text for chunk in client.models.generate_content_stream(model="fake-1", contents="hello")]
assert len(pieces) == 5, pieces
check("google, a stream", "".join(pieces))

# What they make of a refusal.
client = openai.OpenAI(base_url=f"{GATEWAY}/v1/openai/demo", api_key=OPENAI + "AAAA", max_retries=0)
try:
    client.models.list()
    raise SystemExit("a forged device token was accepted")
except openai.AuthenticationError as error:
    print(f"openai, a forged device token: {error.status_code} {error.body['code']}")
