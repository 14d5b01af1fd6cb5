// Called by .ci/sdk, with the folder that has the SDKs. The base URL and the API key are all that they are told.

import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';

const folder = createRequire(`${process.argv[2]}/`);
const { default: OpenAI, toFile } = folder('openai');
const { zodResponseFormat, zodTextFormat } = folder('openai/helpers/zod');
const { default: Anthropic } = folder('@anthropic-ai/sdk');
const { jsonSchemaOutputFormat } = folder('@anthropic-ai/sdk/helpers/json-schema');
const { GoogleGenAI } = folder('@google/genai');
const { z } = folder('zod');

const { APPLE, DOWN_APPLE, PROVIDER, TOKEN } = process.env;
const sha256 = (data) => createHash('sha256').update(data).digest('hex');
const QUESTION = 'Grüße an alle Anbieter. '.repeat(4000);
const ANSWER = sha256(QUESTION);
const ASK = [{ role: 'user', content: QUESTION }];
const FILE = randomBytes(300_000);
const SCHEMA = {
  type: 'object',
  properties: { digest: { type: 'string' } },
  required: ['digest'],
  additionalProperties: false,
};
const Digest = z.object({ digest: z.string() });
// They should not come to the provider.
const STAY = {
  Cookie: 'session=1',
  Forwarded: 'for=192.0.2.1',
  'OpenAI-Organization': 'org-1',
  Origin: 'https://app.example',
  Referer: 'https://app.example/page',
  'X-Forwarded-For': '192.0.2.1',
  'X-HTTP-Method-Override': 'DELETE',
};

const text = async (url, options) => (await fetch(url, options)).text();
const json = async (url, options) => JSON.parse(await text(url, options));
const faults = async () => (await json(`${PROVIDER}/test/faults`)).faults;

// In front of a gateway: it counts requests, notes the seconds that answers say to wait, and looks at what comes back.
const relayTo = async (gateway) => {
  const { url, port } = await json(`${PROVIDER}/test/relay`, { method: 'POST', body: gateway });
  const seen = () => json(`${PROVIDER}/test/requests/${port}`);
  return { url, seen, requests: async () => (await seen()).count };
};

function same(found, expected) {
  if (!isDeepStrictEqual(found, expected)) {
    const shown = (value) => JSON.stringify(value)?.slice(0, 100);
    throw new Error(`${shown(found)} and not ${shown(expected)}`);
  }
}

async function all(stream, piece) {
  const pieces = [];
  for await (const event of stream) pieces.push(piece(event));
  return pieces.filter((text) => text);
}

const bytes = async (response) => Buffer.from(await response.arrayBuffer());

// Counts the requests of a call that fails.
async function refusal(requests, failing, failure, relay) {
  const before = await relay.requests();
  try {
    await failing();
  } catch (error) {
    if (error.status !== failure && !(failure instanceof RegExp && failure.test(error.message))) throw error;
    same((await relay.requests()) - before, requests);
    return `${error.constructor.name} after ${requests}`;
  }
  throw new Error('the gateway answered');
}

const relay = await relayTo(process.env.GATEWAY);

// OpenAI.

const openaiOf = (relay, token) =>
  new OpenAI({
    baseURL: `${relay.url}/v1/openai/demo`,
    apiKey: `${process.env.OPENAI_PART}.${token}`,
    defaultHeaders: STAY,
    maxRetries: 1,
  });
const openai = openaiOf(relay, TOKEN);
const chat = { model: 'model-1', messages: ASK };

const openaiCalls = {
  chat: async () => {
    const answer = await openai.chat.completions.create(chat);
    same(answer.choices[0].message.content, ANSWER);
  },
  'chat, streamed': async () => {
    const stream = await openai.chat.completions.create({ ...chat, stream: true });
    const pieces = await all(stream, (chunk) => chunk.choices[0].delta.content);
    same([pieces.length, pieces.join('')], [8, ANSWER]);
  },
  'chat, structured': async () => {
    const format = zodResponseFormat(Digest, 'digest');
    const answer = await openai.chat.completions.parse({ ...chat, response_format: format });
    same(answer.choices[0].message.parsed, { digest: ANSWER });
  },
  responses: async () => {
    const asked = { model: 'model-1', input: QUESTION };
    same((await openai.responses.create(asked)).output_text, ANSWER);
    const again = await openai.responses.retrieve('resp-1', { include: ['reasoning.encrypted_content'] });
    same(again.output[0].content[0].text, 'again');
    await openai.responses.delete('resp-1');
    same((await openai.responses.inputTokens.count(asked)).input_tokens, QUESTION.length);
  },
  'responses, streamed': async () => {
    const stream = openai.responses.stream({ model: 'model-1', input: QUESTION });
    const pieces = await all(stream, (event) => event.type === 'response.output_text.delta' && event.delta);
    same([pieces.length, pieces.join('')], [8, ANSWER]);
    same((await stream.finalResponse()).output_text, ANSWER);
  },
  'responses, structured': async () => {
    const format = zodTextFormat(Digest, 'digest');
    const answer = await openai.responses.parse({ model: 'model-1', input: QUESTION, text: { format } });
    same(answer.output_parsed, { digest: ANSWER });
  },
  embeddings: async () => {
    const answer = await openai.embeddings.create({ model: 'model-1', input: QUESTION });
    same([...answer.data[0].embedding], [0.5, -1, QUESTION.length]);
  },
  files: async () => {
    const made = await openai.files.create({ file: await toFile(FILE, 'data.bin'), purpose: 'user_data' });
    same([made.bytes, made.filename, made.purpose], [FILE.length, 'data.bin', 'user_data']);
    same(await bytes(await openai.files.content(made.id)), FILE);
    same((await openai.files.retrieve(made.id)).id, made.id);
    const list = await openai.files.list({ limit: 2, order: 'asc', purpose: 'user_data' });
    same(list.data.at(-1).id, made.id);
    same((await openai.files.delete(made.id)).deleted, true);
  },
  images: async () => {
    const made = await openai.images.generate({ model: 'model-1', prompt: QUESTION });
    same(Buffer.from(made.data[0].b64_json, 'base64').toString(), ANSWER);
    const pictures = [FILE, Buffer.from(FILE).reverse()];
    const image = await Promise.all(pictures.map((data) => toFile(data, 'one.png', { type: 'image/png' })));
    const edited = await openai.images.edit({ model: 'model-1', image, prompt: 'as they are' });
    same(edited.data.map(({ b64_json }) => Buffer.from(b64_json, 'base64')), pictures);
  },
  speech: async () => {
    const answer = await openai.audio.speech.create({ model: 'model-1', voice: 'alloy', input: QUESTION });
    same((await bytes(answer)).toString(), ANSWER.repeat(4096));
  },
  transcription: async () => {
    const file = await toFile(FILE, 'voice.wav');
    same((await openai.audio.transcriptions.create({ model: 'model-1', file })).text, sha256(FILE));
  },
  batches: async () => {
    const line = { custom_id: 'one', method: 'POST', url: '/v1/responses', body: { input: QUESTION } };
    const lines = await toFile(Buffer.from(JSON.stringify(line)), 'batch.jsonl');
    const file = await openai.files.create({ file: lines, purpose: 'batch' });
    const order = { input_file_id: file.id, endpoint: '/v1/responses', completion_window: '24h' };
    const made = await openai.batches.create(order);
    same((await openai.batches.list({ limit: 2 })).data.at(-1).id, made.id);
    const done = await openai.batches.retrieve(made.id);
    const output = await (await openai.files.content(done.output_file_id)).json();
    same(output.response.body, ANSWER);
    same((await openai.batches.cancel(made.id)).status, 'cancelled');
  },
  models: async () => {
    same(await all(openai.models.list(), (model) => model.id), ['model-1', 'model-2']);
    same((await openai.models.retrieve('model-1')).id, 'model-1');
  },
  moderations: async () => {
    same((await openai.moderations.create({ input: QUESTION })).results[0].flagged, true);
  },
};

// Anthropic.

const claudeOf = (relay, token) =>
  new Anthropic({
    baseURL: `${relay.url}/v1/anthropic/demo`,
    apiKey: `${process.env.ANTHROPIC_PART}.${token}`,
    defaultHeaders: STAY,
    maxRetries: 1,
  });
const claude = claudeOf(relay, TOKEN);
const limited = { ...chat, max_tokens: 9 };
const batch = { requests: [{ custom_id: 'one', params: limited }] };

const claudeCalls = {
  messages: async () => {
    same((await claude.messages.create(limited)).content[0].text, ANSWER);
  },
  // Earlier versions of the SDK use this one.
  'messages, the key in another header': async () => {
    const { baseURL, apiKey } = claude;
    const other = new Anthropic({ baseURL, apiKey: null, defaultHeaders: { 'X-Api-Key': apiKey } });
    same((await other.messages.create(limited)).content[0].text, ANSWER);
  },
  'messages, streamed': async () => {
    const stream = claude.messages.stream(limited);
    const pieces = await all(stream, (event) => event.type === 'content_block_delta' && event.delta.text);
    same([pieces.length, pieces.join('')], [8, ANSWER]);
    same(await stream.finalText(), ANSWER);
  },
  'messages, structured': async () => {
    const format = jsonSchemaOutputFormat(SCHEMA);
    const answer = await claude.messages.parse({ ...limited, output_config: { format } });
    same(answer.parsed_output, { digest: ANSWER });
  },
  'count tokens': async () => {
    same((await claude.messages.countTokens(chat)).input_tokens, QUESTION.length);
  },
  files: async () => {
    for (const api of [claude.files, claude.beta.files]) {
      const made = await api.upload({ file: await toFile(FILE, 'data.bin') });
      same([made.size_bytes, made.filename], [FILE.length, 'data.bin']);
      same(await bytes(await api.download(made.id)), FILE);
      same((await api.retrieveMetadata(made.id)).id, made.id);
      same((await api.list({ limit: 2 })).data.at(-1).id, made.id);
      same((await api.delete(made.id)).id, made.id);
    }
  },
  batches: async () => {
    const api = claude.messages.batches;
    const made = await api.create(batch);
    same((await api.retrieve(made.id)).processing_status, 'ended');
    same((await api.list({ limit: 2 })).data.at(-1).id, made.id);
    same((await api.cancel(made.id)).processing_status, 'canceling');
    // The same as `results` below.
    const path = `/v1/messages/batches/${made.id}/results`;
    const lines = await (await claude.get(path, { __binaryResponse: true })).text();
    same(JSON.parse(lines).result.message.content[0].text, ANSWER);
    same((await api.delete(made.id)).id, made.id);
  },
  'batches.results()': async () => {
    const made = await claude.messages.batches.create(batch);
    const before = await relay.requests();
    const results = await all(await claude.messages.batches.results(made.id), (line) => line);
    same(results[0].result.message.content[0].text, ANSWER);
    // The first one asks where the results are. Both pass the gateway.
    same((await relay.requests()) - before, 2);
  },
  models: async () => {
    same(await all(claude.models.list(), (model) => model.id), ['model-1', 'model-2']);
    same((await claude.models.retrieve('model-1')).id, 'model-1');
  },
};

// Google.

const geminiOf = (relay, token) =>
  new GoogleGenAI({
    apiKey: `${process.env.GOOGLE_PART}.${token}`,
    httpOptions: { baseUrl: `${relay.url}/v1/google/demo`, headers: STAY },
  });
const gemini = geminiOf(relay, TOKEN);
const model = 'model-1';
const question = { model, contents: QUESTION };

const geminiCalls = {
  'generate content': async () => {
    same((await gemini.models.generateContent(question)).text, ANSWER);
  },
  'generate content, streamed': async () => {
    const pieces = await all(await gemini.models.generateContentStream(question), (chunk) => chunk.text);
    same([pieces.length, pieces.join('')], [8, ANSWER]);
  },
  'generate content, structured': async () => {
    const config = { responseMimeType: 'application/json', responseJsonSchema: SCHEMA };
    const answer = await gemini.models.generateContent({ ...question, config });
    same(JSON.parse(answer.text), { digest: ANSWER });
  },
  interactions: async () => {
    const made = await gemini.interactions.create({ model, input: QUESTION });
    same(made.steps[0].content[0].text, ANSWER);
    await gemini.interactions.delete(made.id);
    const stream = await gemini.interactions.create({ model, input: QUESTION, stream: true });
    const pieces = await all(stream, (event) => event.delta.text);
    same([pieces.length, pieces.join('')], [8, ANSWER]);
  },
  'images and audio within a question': async () => {
    for (const mimeType of ['image/png', 'audio/wav']) {
      const contents = [{ inlineData: { data: FILE.toString('base64'), mimeType } }, 'what is it?'];
      same((await gemini.models.generateContent({ model, contents })).text, sha256(FILE));
    }
  },
  embeddings: async () => {
    const answer = await gemini.models.embedContent(question);
    same(answer.embeddings[0].values, [0.5, -1, QUESTION.length]);
  },
  'count tokens': async () => {
    same((await gemini.models.countTokens(question)).totalTokens, QUESTION.length);
  },
  'files, but for uploads': async () => {
    const list = await gemini.files.list({ config: { pageSize: 2 } });
    same(await all(list, (file) => file.name), ['files/made']);
    const file = await gemini.files.get({ name: 'files/made' });
    const work = mkdtempSync(join(tmpdir(), 'sdk-'));
    try {
      const downloadPath = join(work, 'made');
      await gemini.files.download({ file, downloadPath });
      same(readFileSync(downloadPath, 'utf8'), 'made by Google'.repeat(1000));
    } finally {
      rmSync(work, { recursive: true });
    }
    await gemini.files.delete({ name: 'files/made' });
  },
  // The second request would go around the gateway.
  'an upload fails': async () => {
    const upload = () => gemini.files.upload({ file: new Blob([FILE]), config: { mimeType: 'text/plain' } });
    return refusal(1, upload, 501, relay);
  },
  caches: async () => {
    const made = await gemini.caches.create({ model, config: { contents: QUESTION, ttl: '60s' } });
    same(made.displayName, ANSWER);
    same((await gemini.caches.get({ name: made.name })).displayName, 'again');
    await gemini.caches.update({ name: made.name, config: { ttl: '90s' } });
    const list = await gemini.caches.list({ config: { pageSize: 2 } });
    same(await all(list, (cache) => cache.name), [made.name]);
    await gemini.caches.delete({ name: made.name });
  },
  batches: async () => {
    const src = [{ contents: [{ role: 'user', parts: [{ text: QUESTION }] }] }];
    const made = await gemini.batches.create({ model, src });
    const done = await gemini.batches.get({ name: made.name });
    same(done.state, 'JOB_STATE_SUCCEEDED');
    same(done.dest.inlinedResponses[0].response.candidates[0].content.parts[0].text, ANSWER);
  },
  models: async () => {
    const list = await gemini.models.list({ config: { pageSize: 2, queryBase: true } });
    same(await all(list, (model) => model.name), ['models/model-1', 'models/model-2']);
    same((await gemini.models.get({ model })).displayName, 'Model 1');
  },
};

// Google's SDK repeats no call, the others those that may work later.
const retrieve = (client, model) => client.models.retrieve(model);
const getModel = (client, model) => client.models.get({ model });
const sdks = [
  { name: 'openai', calls: openaiCalls, of: openaiOf, get: retrieve, retries: 1 },
  { name: '@anthropic-ai/sdk', calls: claudeCalls, of: claudeOf, get: retrieve, retries: 1 },
  { name: '@google/genai', calls: geminiCalls, of: geminiOf, get: getModel, retries: 0 },
];

// The SDKs wait while Apple is down, so they do so all at once.
for (const { name, calls, of, get, retries } of sdks) {
  const outage = async () => {
    const relay = await relayTo(process.env.DOWN_GATEWAY);
    const token = (await text(`${DOWN_APPLE}/token?device=${encodeURIComponent(name)}`)).trim();
    const begun = Date.now();
    const found = await refusal(1 + retries, () => get(of(relay, token), 'model-1'), 503, relay);
    const took = (Date.now() - begun) / 1000;
    const { waits } = await relay.seen();
    same(waits.length, 1 + retries);
    if (retries && took < waits[0]) throw new Error(`it waited ${took} s and not ${waits} s`);
    return found;
  };
  const waiting = outage();
  // Awaited below.
  waiting.catch(() => {});
  calls['a forged device token'] = async () => {
    const client = of(relay, (await text(`${APPLE}/forged`)).trim());
    return refusal(1, () => get(client, 'model-1'), 401, relay);
  };
  const client = of(relay, TOKEN);
  const own = name.replaceAll(/[^a-z]/g, '');
  calls['a key that the provider refuses'] = () => refusal(1, () => get(client, `refused-${own}`), 502, relay);
  if (retries) {
    calls['a busy provider'] = async () => {
      const before = await relay.requests();
      await get(client, `busy-${own}`);
      same((await relay.requests()) - before, 2);
    };
  }
  calls['an outage of Apple'] = () => waiting;
}

let failed = false;
for (const { name, calls } of sdks) {
  const { version } = JSON.parse(readFileSync(join(process.argv[2], name, 'package.json'), 'utf8'));
  const works = [];
  for (const [call, run] of Object.entries(calls)) {
    try {
      const note = await run();
      same(await faults(), []);
      works.push(note ? `${call} (${note})` : call);
    } catch (error) {
      failed = true;
      console.log(`${name} ${version}, ${call}: ${error.stack}; ${await faults()}`);
    }
  }
  console.log(`${name} ${version}, ${works.length} of ${Object.keys(calls).length}: ${works.join('; ')}`);
}
process.exit(failed ? 1 : 0);
