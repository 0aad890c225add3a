// Uploads of adapters in parts. A part that fails is tried again, and an upload goes on where the server says it stopped.
(() => {
  "use strict";
  const PART = 4 * 1024 * 1024, TRIES = 5;
  const section = document.querySelector("[data-upload]");
  if (!section) return;
  section.hidden = false;
  const form = section.querySelector("form"), bar = form.querySelector("progress"), status = form.querySelector("[role=status]");
  const drop = form.querySelector(".drop"), button = form.querySelector("button"), token = { "x-form-token": form.dataset.token };
  let under = null; // the upload that stopped: its addresses and its token

  const call = async (path, body) => {
    const reply = await fetch(path, { method: "POST", headers: { ...token, "content-type": "application/json" }, body: JSON.stringify(body) });
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error ?? `the server answered ${reply.status}`);
    return found;
  };
  const wait = (tries) => new Promise((done) => { setTimeout(done, 400 * 2 ** tries); });
  const received = async (address) => {
    const reply = await fetch(address);
    return reply.ok ? (await reply.json()).offset : 0;
  };

  const send = async (file, address, told) => {
    let at = await received(address), tries = 0;
    while (at < file.size || file.size === 0) {
      const end = Math.min(at + PART, file.size);
      try {
        const reply = await fetch(address, { method: "PUT", body: file.slice(at, end), headers: { ...token, "content-type": "application/octet-stream", "content-range": `bytes ${at}-${end - 1}/${file.size}` } });
        const found = await reply.json();
        if (!reply.ok) throw new Error(found.error?.message ?? found.error ?? reply.statusText);
        at = found.offset; tries = 0; told(at);
        if (file.size === 0) return;
      } catch (error) {
        tries += 1;
        if (tries >= TRIES) throw error;
        await wait(tries);
        at = await received(address);
      }
    }
  };

  const upload = async () => {
    const files = [...form.elements.files.files], whole = files.reduce((sum, file) => sum + file.size, 0);
    const name = `${form.elements.repo.value} ${files.map((file) => `${file.name} ${file.size} ${file.lastModified}`)}`;
    if (under?.name !== name) {
      under = { name, ...await call("/console/adapters/upload", { repo: form.elements.repo.value.trim(), alias: form.elements.alias.value.trim() }) };
    }
    const unknown = files.filter((file) => !under.files[file.name]);
    if (unknown.length) throw new Error(`${unknown[0].name} is no file of an adapter; known are ${Object.keys(under.files).join(", ")}`);
    bar.hidden = false;
    let before = 0;
    for (const file of files) {
      await send(file, under.files[file.name], (at) => {
        bar.value = (before + at) / whole;
        status.textContent = `${file.name}: ${Math.round(100 * (before + at) / whole)} %`;
      });
      before += file.size;
    }
    status.textContent = "The server checks the files …";
    const made = await call("/console/adapters/upload/end", { token: under.token });
    under = null;
    location.assign(made.page);
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try { await upload(); } catch (error) { status.textContent = `${error.message}. A further try goes on where this one stopped.`; }
    button.disabled = false;
  });
  for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.dataset.over = ""; });
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => { delete drop.dataset.over; });
  drop.addEventListener("drop", (event) => { event.preventDefault(); form.elements.files.files = event.dataTransfer.files; });
})();
