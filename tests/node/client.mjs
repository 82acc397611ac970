// The official Node client over the whole generation surface: `node --throw-deprecation client.mjs URL` prints a line of JSON a
// section. tests/python/client.py has the same sections for Python. A section fails by throwing, or by any warning of Node's.

import assert from "node:assert/strict";

import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [STORIES, CALC, VECTORS, CALLER] = ["demo-stories", "demo-calc", "demo-vectors", "demo-tools"]; // the first is loaded
const STORY = [{ role: "user", content: "Tell me a story." }];
const ONCE = "Once upon a time";

const url = process.argv[2];
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const warnings = [];
process.on("warning", (warning) => warnings.push(String(warning.stack)));

const sections = new Map();
function section(name, run) {
  sections.set(name, run);
}

const complete = (asked) => client.completions.create({ model: STORIES, prompt: ONCE, temperature: 0, ...asked });
const chat = (asked) => client.chat.completions.create({ model: STORIES, messages: STORY, temperature: 0, ...asked });

async function all(stream) {
  const items = [];
  for await (const item of await stream) items.push(item);
  return items;
}

// /tokenize is llama-server's, beside /v1.
async function tokensOf(text, special = true) {
  const told = await client.post("/../tokenize", { body: { content: text, add_special: special } });
  return told.tokens;
}

section("models", async () => {
  const listed = await all(client.models.list());
  assert.deepEqual(listed.map((model) => model.id), [STORIES]);
  const model = await client.models.retrieve(STORIES);
  assert.equal(model.object, "model");
  assert.ok(model.created > 1_700_000_000);
  assert.ok(model.owned_by);
});

section("completion_whole", async () => {
  const answer = await complete({ max_tokens: 20 });
  assert.equal(answer.object, "text_completion");
  assert.ok(answer.id.startsWith("cmpl-"));
  assert.equal(answer.model, STORIES);
  const [choice, ...more] = answer.choices;
  assert.equal(more.length, 0);
  assert.ok(choice.text);
  assert.equal(choice.finish_reason, "length");
  assert.equal(choice.logprobs, null);
  assert.equal(answer.usage.completion_tokens, 20);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + 20);
  assert.ok(answer._request_id);
});

section("completion_streamed", async () => {
  const whole = await complete({ max_tokens: 20 });
  const chunks = await all(complete({ max_tokens: 20, stream: true, stream_options: { include_usage: true } }));
  const last = chunks.pop();
  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), whole.choices[0].text);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
  assert.ok(chunks.slice(0, -1).every((chunk) => chunk.choices[0].finish_reason === null));
  assert.ok(chunks.every((chunk) => chunk.usage === null && chunk.id === last.id));
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);
  const plain = await all(complete({ max_tokens: 5, stream: true }));
  assert.ok(plain.every((chunk) => chunk.usage === undefined && chunk.choices.length === 1));
});

section("chat_whole", async () => {
  const answer = await chat({ max_completion_tokens: 20 });
  assert.equal(answer.object, "chat.completion");
  assert.ok(answer.id.startsWith("chatcmpl-"));
  const [choice] = answer.choices;
  assert.equal(choice.message.role, "assistant");
  assert.ok(choice.message.content);
  assert.equal(choice.message.refusal, null);
  assert.equal(choice.message.tool_calls, undefined);
  assert.equal(choice.finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 20);
  assert.equal(typeof answer.usage.prompt_tokens_details.cached_tokens, "number");
  const parts = [
    { role: "developer", content: "Be brief." },
    { role: "user", content: [{ type: "text", text: "Tell me a story." }] },
    { role: "assistant", content: "Once." },
    { role: "user", content: "Go on." },
  ];
  assert.ok((await chat({ messages: parts, max_tokens: 5 })).choices[0].message.content);
});

section("chat_streamed", async () => {
  const whole = await chat({ max_tokens: 20 });
  const chunks = await all(chat({ max_tokens: 20, stream: true, stream_options: { include_usage: true } }));
  const last = chunks.pop();
  assert.ok(chunks.every((chunk) => chunk.object === "chat.completion.chunk"));
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), whole.choices[0].message.content);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);
});

section("stream_helpers", async () => {
  const whole = await chat({ stop: "." });
  const stream = client.chat.completions.stream({ model: STORIES, messages: STORY, temperature: 0, stop: "." });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const final = await stream.finalChatCompletion();
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(final.choices[0].message.content, text);
  assert.equal(final.choices[0].finish_reason, "stop");
});

section("stops", async () => {
  const text = (await complete({ max_tokens: 60 })).choices[0].text;
  for (const stop of [".", [".", "never"], [...Array(15).keys()].map(String).concat(".")]) {
    const [choice] = (await complete({ max_tokens: 60, stop })).choices;
    assert.equal(choice.text, text.split(".")[0]);
    assert.equal(choice.finish_reason, "stop");
    const [told] = (await chat({ max_tokens: 60, stop })).choices;
    assert.ok(!told.message.content.includes("."));
    assert.equal(told.finish_reason, "stop");
  }
});

section("seeds", async () => {
  const tell = async (seed) => (await chat({ temperature: 1.5, max_tokens: 30, seed })).choices[0].message.content;
  assert.equal(await tell(1), await tell(1));
  assert.ok(new Set(await Promise.all([0, 1, 2, 3].map(tell))).size > 1);
});

section("sampling", async () => {
  const greedy = (await complete({ max_tokens: 8 })).choices[0].text;
  for (const narrow of [{ top_p: 0 }, { top_k: 1 }, { min_p: 1 }, { top_k: 1, typical_p: 0.5, cache_prompt: false }]) {
    assert.equal((await complete({ max_tokens: 8, temperature: 2, ...narrow })).choices[0].text, greedy);
  }
  const nWords = async (asked) => new Set((await complete({ max_tokens: 60, ...asked })).choices[0].text.split(" ")).size;
  assert.ok((await nWords({ presence_penalty: 2, frequency_penalty: 2 })) > (await nWords({})));
});

section("logit_bias", async () => {
  const [fox] = await tokensOf(" fox", false);
  const asked = { max_tokens: 3, logit_bias: { [fox]: 100 } };
  assert.equal((await complete(asked)).choices[0].text, " fox fox fox");
  assert.equal((await chat(asked)).choices[0].message.content, " fox fox fox");
});

section("token_prompts", async () => {
  const ids = await tokensOf(ONCE);
  const [text, tokens] = [await complete({ max_tokens: 10 }), await complete({ max_tokens: 10, prompt: ids })];
  assert.equal(tokens.choices[0].text, text.choices[0].text);
  assert.equal(tokens.usage.prompt_tokens, ids.length);
});

section("several_choices", async () => {
  const asked = { max_tokens: 20, temperature: 1.5, seed: 1 };
  const [answer, alone] = [await complete({ ...asked, n: 3 }), await complete({ ...asked, n: 1 })];
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
  assert.equal(new Set(answer.choices.map((choice) => choice.text)).size, 3);
  assert.equal(answer.usage.prompt_tokens, alone.usage.prompt_tokens);
  assert.ok(answer.usage.completion_tokens <= 3 * 20);
  const texts = ["", "", ""];
  const ends = [];
  for await (const chunk of await chat({ ...asked, n: 3, stream: true })) {
    for (const choice of chunk.choices) {
      assert.ok(!ends.includes(choice.index));
      texts[choice.index] += choice.delta.content ?? "";
      if (choice.finish_reason) ends.push(choice.index);
    }
  }
  assert.ok(texts.every((text) => text));
  assert.deepEqual(ends.sort(), [0, 1, 2]);
});

section("lists_of_prompts", async () => {
  const prompts = [ONCE, "One day", "The fox"];
  const alone = [];
  for (const prompt of prompts) alone.push(await complete({ prompt, max_tokens: 8 }));
  const wanted = alone.map((answer) => answer.choices[0].text);
  const together = await complete({ prompt: prompts, max_tokens: 8 });
  assert.deepEqual(together.choices.map((choice) => choice.text), wanted);
  assert.equal(together.usage.prompt_tokens, alone.reduce((sum, answer) => sum + answer.usage.prompt_tokens, 0));
  const ids = await Promise.all(prompts.map((prompt) => tokensOf(prompt)));
  const texts = ["", "", ""];
  for await (const chunk of await complete({ prompt: ids, max_tokens: 8, stream: true })) {
    for (const choice of chunk.choices) texts[choice.index] += choice.text;
  }
  assert.deepEqual(texts, wanted);
});

section("completion_logprobs", async () => {
  const [choice] = (await complete({ max_tokens: 6, logprobs: 3 })).choices;
  const told = choice.logprobs;
  assert.equal(told.tokens.join(""), choice.text);
  told.tokens.forEach((token, i) => {
    assert.equal(Object.keys(told.top_logprobs[i]).length, 3);
    assert.equal(told.top_logprobs[i][token], told.token_logprobs[i]); // greedy
    assert.equal(Math.max(...Object.values(told.top_logprobs[i])), told.token_logprobs[i]);
    assert.ok(told.token_logprobs[i] <= 0);
    assert.equal(told.text_offset[i], told.tokens.slice(0, i).join("").length);
  });
  const chunks = await all(complete({ max_tokens: 6, logprobs: 3, stream: true }));
  assert.deepEqual(chunks.flatMap((chunk) => chunk.choices[0].logprobs?.tokens ?? []), told.tokens);
});

section("chat_logprobs", async () => {
  const [choice] = (await chat({ max_tokens: 6, logprobs: true, top_logprobs: 4 })).choices;
  const told = choice.logprobs.content;
  assert.equal(told.map((item) => item.token).join(""), choice.message.content);
  for (const item of told) {
    assert.equal(Buffer.from(item.bytes).toString(), item.token);
    const tops = item.top_logprobs.map((top) => top.logprob);
    assert.equal(tops.length, 4);
    assert.deepEqual(tops, [...tops].sort((a, b) => b - a));
    assert.equal(item.top_logprobs[0].token, item.token);
    assert.equal(item.top_logprobs[0].logprob, item.logprob);
  }
  const chunks = await all(chat({ max_tokens: 6, logprobs: true, stream: true }));
  const items = chunks.flatMap((chunk) => chunk.choices[0].logprobs?.content ?? []);
  assert.deepEqual(items.map((item) => item.token), told.map((item) => item.token));
  assert.ok(items.every((item) => item.top_logprobs.length === 0));
});

section("echo", async () => {
  const plain = await complete({ max_tokens: 6 });
  const answer = await complete({ max_tokens: 6, echo: true, logprobs: 0 });
  assert.equal(answer.choices[0].text, ONCE + plain.choices[0].text);
  assert.equal(answer.choices[0].logprobs.tokens.length, answer.usage.total_tokens);
  const scored = await complete({ max_tokens: 0, echo: true, logprobs: 1 });
  assert.equal(scored.choices[0].text, ONCE);
  const [first, ...others] = scored.choices[0].logprobs.token_logprobs;
  assert.equal(first, null);
  assert.ok(others.length && others.every((logprob) => logprob <= 0));
  assert.equal(scored.usage.completion_tokens, 0);
});

section("grammars", async () => {
  const grammar = 'root ::= ("yes" | "no") " " [0-9]{3}';
  assert.match((await complete({ grammar })).choices[0].text, /^(yes|no) [0-9]{3}$/);
  const chunks = await all(chat({ grammar, stream: true }));
  assert.match(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), /^(yes|no) [0-9]{3}$/);
});

const Friend = z.object({ name: z.string().max(10), kind: z.enum(["cat", "dog"]), age: z.int().min(0).max(20) });
const Tale = z.object({
  hero: z.string().max(10),
  good: z.boolean(),
  age: z.int().nullable(),
  friends: z.array(Friend).max(2),
});

section("json_objects", async () => {
  const answer = await chat({ response_format: { type: "json_object" }, max_tokens: 300, temperature: 0.8, seed: 1 });
  const [choice] = answer.choices;
  assert.ok(choice.message.content.startsWith("{"));
  if (choice.finish_reason === "stop") assert.equal(typeof JSON.parse(choice.message.content), "object");
});

section("json_schemas", async () => {
  const schema = {
    type: "object",
    properties: {
      name: { type: "string", maxLength: 10 },
      kind: { enum: ["cat", "dog"] },
      age: { type: "integer", minimum: 0, maximum: 20 },
    },
    required: ["name", "kind", "age"],
    additionalProperties: false,
  };
  for (const seed of [0, 1, 2]) {
    const response_format = { type: "json_schema", json_schema: { name: "friend", schema, strict: true } };
    const [choice] = (await chat({ response_format, seed, temperature: 0.8 })).choices;
    assert.equal(choice.finish_reason, "stop");
    Friend.parse(JSON.parse(choice.message.content));
  }
});

section("typed_parse", async () => {
  const asked = { model: STORIES, messages: STORY, response_format: zodResponseFormat(Tale, "tale"), seed: 2 };
  const { message, finish_reason } = (await client.chat.completions.parse(asked)).choices[0];
  assert.equal(finish_reason, "stop");
  assert.deepEqual(message.parsed, Tale.parse(JSON.parse(message.content)));
  const stream = client.chat.completions.stream(asked);
  Tale.parse((await stream.finalChatCompletion()).choices[0].message.parsed);
});

section("errors", async () => {
  async function refused(kind, asked) {
    const error = await complete({ max_tokens: 5, ...asked }).then(
      () => assert.fail(`${JSON.stringify(asked).slice(0, 80)} was not refused`),
      (error) => error,
    );
    assert.ok(error instanceof kind, String(error));
    assert.ok(error.requestID);
    assert.deepEqual(Object.keys(error.error).sort(), ["code", "message", "param", "type"]);
    return error;
  }
  const unknown = await refused(OpenAI.NotFoundError, { model: "nope" });
  assert.deepEqual([unknown.status, unknown.code, unknown.param], [404, "model_not_found", "model"]);
  const other = await refused(OpenAI.ConflictError, { model: CALC });
  assert.deepEqual([other.status, other.code], [409, "model_not_loaded"]);
  const long = await refused(OpenAI.BadRequestError, { prompt: "word ".repeat(5000) });
  assert.deepEqual([long.code, long.param, long.type], ["context_length_exceeded", "prompt", "invalid_request_error"]);
  for (const [name, value] of Object.entries({ temperature: 3, top_p: "high", stop: Array(17).fill("x"), logit_bias: { a: 1 } })) {
    for (const stream of [false, true]) {
      const bad = await refused(OpenAI.BadRequestError, { [name]: value, stream });
      assert.deepEqual([bad.code, bad.param, bad.type], ["invalid_request", name, "invalid_request_error"]);
    }
  }
  const big = await refused(OpenAI.APIError, { prompt: "x".repeat(2 << 20) });
  assert.deepEqual([big.status, big.code], [413, "payload_too_large"]);
});

section("many_at_once", async () => {
  const answers = await Promise.all([...Array(12).keys()].map((seed) => complete({ max_tokens: 20, temperature: 1, seed })));
  assert.ok(answers.every((answer) => answer.usage.completion_tokens <= 20));
});

section("leaving_early", async () => {
  for (let i = 0; i < 10; i++) {
    const stream = await complete({ stream: true, ignore_eos: true });
    for await (const _ of stream) break; // which aborts the request
  }
  assert.ok((await complete({ max_tokens: 5 })).choices[0].text);
});

async function switchTo(modelId) {
  const { op_id } = await client.post("/../switch", { body: { model_id: modelId } });
  for (;;) {
    const { state } = await client.get(`/../ops/${op_id}`);
    if (state !== "queued" && state !== "running") return assert.equal(state, "succeeded");
  }
}

// Last: it loads another model for a while.
section("embeddings", async () => {
  const close = (some, others) => some.length === others.length && some.every((x, i) => Math.abs(x - others[i]) < 1e-4);
  const embed = (asked) => client.embeddings.create({ model: VECTORS, ...asked });
  const generating = await embed({ model: STORIES, input: ONCE }).catch((error) => error);
  assert.deepEqual([generating.status, generating.code, generating.param], [400, "invalid_request", "model"]);
  await switchTo(VECTORS);
  try {
    const packed = await embed({ input: [ONCE, "the end"] });
    assert.deepEqual([packed.object, packed.model], ["list", VECTORS]);
    assert.deepEqual(packed.data.map((item) => item.index), [0, 1]);
    assert.equal(packed.usage.total_tokens, packed.usage.prompt_tokens);
    const plain = (await embed({ input: ONCE, encoding_format: "float" })).data[0].embedding;
    assert.ok(close(packed.data[0].embedding, plain));
    assert.ok(Math.abs(Math.hypot(...plain) - 1) < 1e-5);
    const ids = await embed({ input: await tokensOf(ONCE), dimensions: 16 });
    const beginning = Math.hypot(...plain.slice(0, 16));
    assert.ok(close(ids.data[0].embedding, plain.slice(0, 16).map((x) => x / beginning)));
    const long = await embed({ input: ["a", "word ".repeat(5000)] }).catch((error) => error);
    assert.deepEqual([long.status, long.code, long.param], [400, "context_length_exceeded", "input"]);
  } finally {
    await switchTo(STORIES);
  }
});

const Weather = z.object({ city: z.string().max(10), unit: z.enum(["C", "F"]) });
const Add = z.object({ terms: z.array(z.int()).min(1).max(3) });

// The model knows of none: that they are required makes it call.
section("tools", async () => {
  const tools = [
    zodFunction({ name: "Weather", description: "What is the weather like?", parameters: Weather }),
    zodFunction({ name: "add", parameters: Add }),
  ];
  const asked = { model: CALLER, tools, tool_choice: "required", parallel_tool_calls: false, seed: 1, temperature: 1 };
  const refused = await chat({ ...asked, model: STORIES }).catch((error) => error);
  assert.deepEqual([refused.status, refused.param], [400, "tools"]);
  await switchTo(CALLER);
  try {
    const [choice] = (await chat(asked)).choices;
    assert.equal(choice.finish_reason, "tool_calls");
    assert.equal(choice.message.content, null);
    const [call, ...more] = choice.message.tool_calls;
    assert.equal(more.length, 0);
    assert.equal(call.type, "function");
    assert.ok(call.id.startsWith("call_"));
    const made = { Weather, add: Add }[call.function.name].parse(JSON.parse(call.function.arguments));

    const chunks = await all(chat({ ...asked, stream: true }));
    const parts = chunks.flatMap((chunk) => chunk.choices[0].delta.tool_calls ?? []);
    assert.ok(parts.every((part) => part.index === 0));
    assert.deepEqual(parts.filter((part) => part.id).map((part) => part.function.name), [call.function.name]);
    assert.equal(parts.map((part) => part.function?.arguments ?? "").join(""), call.function.arguments);
    assert.equal(chunks.at(-1).choices[0].finish_reason, "tool_calls");

    const typed = { messages: STORY, ...asked };
    const parsed = (await client.chat.completions.parse(typed)).choices[0].message.tool_calls[0];
    assert.deepEqual(parsed.function.parsed_arguments, made);
    const done = [];
    const stream = client.chat.completions.stream(typed);
    stream.on("tool_calls.function.arguments.done", (event) => done.push(event.name));
    const [final] = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
    assert.deepEqual(final.function.parsed_arguments, made);
    assert.deepEqual(done, [call.function.name]);

    for (const name of ["Weather", "add"]) {
      const named = await chat({ ...asked, tool_choice: { type: "function", function: { name } } });
      assert.equal(named.choices[0].message.tool_calls[0].function.name, name);
    }
    const messages = [...STORY, choice.message, { role: "tool", tool_call_id: call.id, content: "42" }];
    for (const tool_choice of ["auto", "none"]) {
      const { message } = (await chat({ ...asked, messages, tool_choice, max_tokens: 5 })).choices[0];
      assert.ok(message.content);
      assert.equal(message.tool_calls, undefined);
    }
  } finally {
    await switchTo(STORIES);
  }
});

for (const [name, run] of sections) {
  let problem = null;
  warnings.length = 0;
  try {
    await run();
    await new Promise(setImmediate); // warnings come in a later tick
    if (warnings.length) problem = warnings.join("\n");
  } catch (error) {
    problem = String(error.stack);
  }
  if (problem !== null) process.exitCode = 1;
  console.log(JSON.stringify({ section: name, problem }));
}
