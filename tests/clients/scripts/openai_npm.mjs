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
      for (let count = 0; count <= facts.limited_requests; count += 1) {
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
