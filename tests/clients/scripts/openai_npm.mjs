// Runs with node: a file of facts and the folder of the package `openai` as its arguments. Prints one line of JSON.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [factsFile, folder] = process.argv.slice(2);
const facts = JSON.parse(readFileSync(factsFile, "utf8"));
const require = createRequire(pathToFileURL(join(folder, "package.json")));
const OpenAI = require("openai");
const { zodFunction, zodResponseFormat, zodTextFormat } = require("openai/helpers/zod");
const zod = require("zod");
const { version } = JSON.parse(readFileSync(join(folder, "node_modules", "openai", "package.json"), "utf8"));

const connect = (changes = {}) => new OpenAI({ baseURL: `${facts.url}/v1`, apiKey: facts.key, maxRetries: 0, ...changes });
const client = connect();
const messages = [{ role: "user", content: facts.question }];
const asked = { model: facts.adapter, messages, max_tokens: 8, temperature: 0 };

async function textOf(stream) {
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? chunk.choices[0]?.text ?? "";
  return text;
}

const city = { type: "string", enum: ["Rome", "Paris"] };
const schema = { type: "object", properties: { city }, required: ["city"], additionalProperties: false };
const weather = { type: "function", function: { name: "get_weather", parameters: schema, strict: true } };
const now = { type: "function", function: { name: "now" } };
const sampled = { model: facts.base, messages: [{ role: "user", content: "What is the weather in Rome?" }], max_tokens: 120, temperature: 0 };

const cases = {
  async a_chat_is_answered() {
    const { data, request_id: id } = await client.chat.completions.create(asked).withResponse();
    assert.equal(data.choices[0].message.content, facts.answer);
    assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
    assert.ok(id);
  },
  async a_chat_is_streamed() {
    assert.equal(await textOf(await client.chat.completions.create({ ...asked, stream: true })), facts.answer);
    const runner = client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
    assert.equal(await runner.finalContent(), facts.answer);
    assert.ok((await runner.totalUsage()).completion_tokens > 0);
  },
  async a_text_is_completed() {
    const fields = { model: "", prompt: "Hello", max_tokens: 4, temperature: 0 };
    const whole = await client.completions.create({ ...fields, logprobs: 2 });
    assert.equal(whole.choices[0].logprobs.tokens.join(""), whole.choices[0].text);
    assert.equal(await textOf(await client.completions.create({ ...fields, stream: true })), whole.choices[0].text);
  },
  async models_are_listed() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    assert.ok(names.includes(facts.adapter) && names.includes(facts.base));
    assert.equal((await client.models.retrieve(facts.adapter)).parent, facts.base);
  },
  async tools_are_called_by_their_schemas() {
    const create = (more) => client.chat.completions.create({ ...sampled, tools: [weather, now], ...more });
    const required = await create({ tool_choice: "required", parallel_tool_calls: false });
    assert.equal(required.choices[0].finish_reason, "tool_calls");
    assert.equal(required.choices[0].message.tool_calls.length, 1);
    const named = { tool_choice: { type: "function", function: { name: "get_weather" } }, parallel_tool_calls: false };
    const { message } = (await create(named)).choices[0];
    const [call] = message.tool_calls;
    assert.ok(city.enum.includes(JSON.parse(call.function.arguments).city));
    const deltas = [];
    for await (const chunk of await create({ ...named, stream: true })) deltas.push(...(chunk.choices[0].delta.tool_calls ?? []));
    assert.equal(deltas[0].function.name, "get_weather");
    assert.equal(deltas.map((delta) => delta.function.arguments ?? "").join(""), call.function.arguments);
    const result = { role: "tool", tool_call_id: call.id, content: "sunny" };
    const more = await create({ messages: [...sampled.messages, message, result], max_tokens: 4 });
    assert.ok(more.usage.prompt_tokens > 0);
    assert.equal((await create({ tool_choice: "none" })).choices[0].message.tool_calls, undefined);
  },
  async tools_are_run() {
    const asked = [];
    const run = ({ city: name }) => (asked.push(name), "sunny");
    const own = { type: "function", function: { ...weather.function, function: run, parse: JSON.parse } };
    const tool_choice = { type: "function", function: { name: "get_weather" } };
    const runner = client.chat.completions.runTools({ ...sampled, tools: [own], tool_choice, parallel_tool_calls: false });
    assert.equal(await runner.finalFunctionToolCallResult(), "sunny");
    assert.ok(asked.length === 1 && city.enum.includes(asked[0]));
  },
  async replies_are_parsed() {
    const Weather = zod.object({ city: zod.enum(city.enum) });
    const parsed = await client.chat.completions.parse({ ...sampled, response_format: zodResponseFormat(Weather, "weather") });
    assert.ok(city.enum.includes(parsed.choices[0].message.parsed.city));
    const tools = [zodFunction({ name: "get_weather", parameters: Weather })];
    const called = await client.chat.completions.parse({ ...sampled, tools, tool_choice: "required", parallel_tool_calls: false });
    assert.ok(city.enum.includes(called.choices[0].message.tool_calls[0].function.parsed_arguments.city));
    const text = { format: zodTextFormat(Weather, "weather") };
    const formed = await client.responses.parse({ model: facts.base, input: "Which city?", text, temperature: 0 });
    assert.ok(city.enum.includes(formed.output_parsed.city));
  },
  async texts_are_embedded() {
    const input = ["A parcel is late.", "The weather is fine."];
    const encoded = await client.embeddings.create({ model: "", input }); // the client asks for base64 and decodes it
    const plain = await client.embeddings.create({ model: "", input, encoding_format: "float" });
    assert.deepEqual(plain.data.map((entry) => entry.index), [0, 1]);
    const near = (a, b) => a.length === b.length && a.every((value, index) => Math.abs(value - b[index]) < 1e-6);
    plain.data.forEach((entry, index) => assert.ok(near(entry.embedding, encoded.data[index].embedding)));
    const adapted = await client.embeddings.create({ model: facts.adapter, input: input[0] });
    assert.ok(!near(adapted.data[0].embedding, plain.data[0].embedding));
  },
  async responses_are_kept_and_streamed() {
    const base = { model: facts.base, max_output_tokens: 3, temperature: 0 };
    const whole = await client.responses.create({ ...base, input: "Say hello.", instructions: "Be brief." });
    assert.equal(whole.status, "incomplete");
    assert.equal((await client.responses.retrieve(whole.id)).output_text, whole.output_text);
    const events = [];
    const follow = { ...base, input: "Again.", previous_response_id: whole.id, stream: true };
    for await (const event of await client.responses.create(follow)) events.push(event);
    assert.deepEqual(events.map((event) => event.sequence_number), events.map((_, index) => index));
    const text = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta).join("");
    const { response } = events.at(-1);
    assert.equal(response.output.flatMap((item) => item.content).map((part) => part.text).join(""), text);
    await client.responses.delete(whole.id);
    await assert.rejects(client.responses.retrieve(whole.id), OpenAI.NotFoundError);
  },
  async a_stream_in_the_background_is_joined_again() {
    const fields = { model: facts.base, input: "Say hello.", max_output_tokens: 6, temperature: 0, background: true };
    const all = [];
    for await (const event of await client.responses.create({ ...fields, stream: true })) all.push(event);
    const { id } = all[0].response;
    const rest = [];
    const joined = await client.responses.retrieve(id, { stream: true, starting_after: all[1].sequence_number });
    for await (const event of joined) rest.push(event);
    assert.deepEqual(rest.map((event) => event.type), all.slice(2).map((event) => event.type));
    assert.equal((await client.responses.retrieve(id)).status, "incomplete");
  },
  async batches_are_run() {
    const bodies = [facts.adapter, facts.base, "no-such-adapter"].map((model) => ({ ...asked, model, max_tokens: 4 }));
    const line = (body, index) => JSON.stringify({ custom_id: `${index}`, method: "POST", url: "/v1/chat/completions", body });
    const upload = await OpenAI.toFile(Buffer.from(bodies.map(line).join("\n")), "lines.jsonl");
    const file = await client.files.create({ file: upload, purpose: "batch" });
    let batch = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" });
    while (batch.status !== "completed") {
      assert.ok(["validating", "in_progress", "finalizing"].includes(batch.status), batch.status);
      await new Promise((resolve) => setTimeout(resolve, 50));
      batch = await client.batches.retrieve(batch.id);
    }
    assert.deepEqual([batch.request_counts.completed, batch.request_counts.failed], [2, 1]);
    const results = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map(JSON.parse);
    const first = results.find((result) => result.custom_id === "0");
    const whole = await client.chat.completions.create(bodies[0]);
    assert.equal(first.response.body.choices[0].message.content, whole.choices[0].message.content);
    await client.files.delete(file.id);
    await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
  },
  async errors_have_their_classes() {
    const unknown = { ...asked, model: "no-such-adapter" };
    await assert.rejects(client.chat.completions.create(unknown), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, "model_not_found");
      return true;
    });
    await assert.rejects(client.chat.completions.create({ ...unknown, stream: true }), OpenAI.NotFoundError);
    await assert.rejects(client.completions.create({ model: "", prompt: "hello ".repeat(4000) }), OpenAI.BadRequestError);
    await assert.rejects(connect({ apiKey: "pb_wrong" }).chat.completions.create(asked), OpenAI.AuthenticationError);
    const limited = connect({ apiKey: facts.limited_key });
    await assert.rejects(async () => {
      for (let count = 0; count < 10 * facts.limited_requests; count += 1) {
        await limited.completions.create({ model: "", prompt: "Hello", max_tokens: 1 });
      }
    }, OpenAI.RateLimitError);
  },
  async a_caller_that_leaves_frees_its_place() {
    for (let count = 0; count < facts.max_concurrent; count += 1) {
      const stream = await client.chat.completions.create({ ...asked, max_tokens: 1000, stream: true });
      for await (const _ of stream) break;
    }
    assert.ok(await client.completions.create({ model: "", prompt: "Hello", max_tokens: 1 }));
  },
};

const failed = [];
for (const [name, run] of Object.entries(cases)) {
  try {
    await run();
  } catch (error) {
    failed.push(name);
    console.error(`${name} failed:\n${error.stack}`);
  }
}
console.log(JSON.stringify({ version, cases: Object.keys(cases), failed }));
process.exit(failed.length ? 1 : 0);
