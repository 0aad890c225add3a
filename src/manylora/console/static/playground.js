// The playground: sends one prompt to two models, shows both streams, and writes the same request as a program.
(() => {
  "use strict";
  const form = document.getElementById("ask");
  if (!form) return;
  const prices = JSON.parse(form.dataset.prices), stop = form.querySelector("[data-stop]");
  let abort = null;

  const body = (model) => {
    const made = { model, messages: [{ role: "user", content: form.elements.prompt.value }], temperature: Number(form.elements.temperature.value), max_tokens: Number(form.elements.max_tokens.value) };
    const schema = form.elements.schema.value.trim();
    if (schema) made.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(schema) } };
    return made;
  };

  const cost = (usage, base) => {
    const price = prices[base] ?? (Object.keys(prices).length === 1 ? Object.values(prices)[0] : null);
    if (!price) return "";
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    const nano = (usage.prompt_tokens - cached) * price.input_nanousd + cached * price.cached_input_nanousd + usage.completion_tokens * price.output_nanousd;
    return `$${(nano / 1e9).toFixed(9).replace(/(\.\d\d\d*?)0+$/, "$1")}`;
  };

  const facts = (reply, usage, ms) => [
    reply.headers.get("x-adapter-tier") && `tier ${reply.headers.get("x-adapter-tier")}`,
    reply.headers.get("x-adapter-load-time") && `loaded in ${reply.headers.get("x-adapter-load-time")} ms`,
    `${Math.round(ms)} ms`,
    usage && `${usage.prompt_tokens} + ${usage.completion_tokens} tokens`,
    usage && cost(usage, reply.headers.get("x-model-id")),
  ].filter(Boolean).join(" · ");

  const lines = async function* (reply) {
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      yield* parts.filter((line) => line.startsWith("data: ") && line !== "data: [DONE]").map((line) => JSON.parse(line.slice(6)));
    }
  };

  const ask = async (side) => {
    const card = document.getElementById(side), model = form.elements[side].value;
    const answer = card.querySelector(".answer"), told = card.querySelector(".facts"), begun = performance.now();
    card.querySelector("h2").textContent = model;
    answer.textContent = ""; told.textContent = "…";
    try {
      const reply = await fetch("/console/playground/ask", { method: "POST", signal: abort.signal, headers: { "content-type": "application/json", "x-form-token": form.dataset.token }, body: JSON.stringify({ ...body(model), stream: true, stream_options: { include_usage: true } }) });
      if (!reply.ok) throw new Error((await reply.json()).error?.message ?? `the server answered ${reply.status}`);
      let usage = null;
      for await (const event of lines(reply)) {
        if (event.error) throw new Error(event.error.message);
        answer.textContent += event.choices?.[0]?.delta?.content ?? "";
        usage = event.usage ?? usage;
      }
      told.textContent = facts(reply, usage, performance.now() - begun);
    } catch (error) { told.textContent = error.name === "AbortError" ? "stopped" : error.message; }
  };

  const NAMES = new Map([[null, "None"], [true, "True"], [false, "False"]]);
  // A value of JSON as a literal of Python.
  const literal = (value) => {
    if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
    if (value instanceof Object) return `{${Object.entries(value).map((pair) => pair.map(literal).join(": ")).join(", ")}}`;
    return NAMES.get(value) ?? JSON.stringify(value);
  };
  const call = (name, fields) => `${name}(\n${Object.entries(fields).map(([field, value]) => `    ${field}=${literal(value)},\n`).join("")})`;

  const programs = {
    curl: (address, made) => `curl -s ${address}/v1/chat/completions \\\n  -H "Authorization: Bearer $MANYLORA_KEY" -H "Content-Type: application/json" \\\n  -d '${JSON.stringify(made).replaceAll("'", "'\\''")}'`,
    openai: (address, made) => `import os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url="${address}/v1", api_key=os.environ["MANYLORA_KEY"])\nreply = ${call("client.chat.completions.create", made)}\nprint(reply.choices[0].message.content)`,
    // LoRAX's client refuses a temperature of 0, which is its greedy default.
    lorax: (address, made) => {
      const heat = made.temperature ? { do_sample: true, temperature: made.temperature } : {};
      const schema = made.response_format ? { response_format: { type: "json_object", schema: made.response_format.json_schema.schema } } : {};
      const fields = { prompt: made.messages[0].content, adapter_id: made.model, max_new_tokens: made.max_tokens, ...heat, ...schema };
      return `import os\nfrom lorax import Client\n\n# The client sends the prompt as it is, without the chat template of the base.\nclient = Client("${address}", headers={"Authorization": "Bearer " + os.environ["MANYLORA_KEY"]})\nreply = ${call("client.generate", fields)}\nprint(reply.generated_text)`;
    },
  };
  const show = () => {
    try {
      document.getElementById("program").textContent = programs[document.getElementById("form").value](form.dataset.address, body(form.elements.right.value));
    } catch (error) { document.getElementById("program").textContent = `the schema is not JSON: ${error.message}`; }
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    abort = new AbortController(); stop.hidden = false;
    await Promise.all(["left", "right"].map(ask));
    stop.hidden = true;
  });
  stop.addEventListener("click", () => abort.abort());
  form.addEventListener("input", show);
  document.getElementById("form").addEventListener("change", show);
  show();
})();
