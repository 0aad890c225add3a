// Conveniences of the console's pages. Every page can be read, and every form sent, without this file.
(() => {
  "use strict";

  const copy = async (button) => {
    const source = document.querySelector(button.dataset.copy);
    await navigator.clipboard.writeText(source.value ?? source.textContent);
    const label = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  };

  // One details element of a table is open at a time, and Escape closes it.
  const closeOthers = (event) => {
    if (!event.target.open || !event.target.matches("details.confirm")) return;
    document.querySelectorAll("details.confirm[open]").forEach((other) => {
      if (other !== event.target) other.open = false;
    });
  };

  document.addEventListener("toggle", closeOthers, true);
  document.addEventListener("keydown", (event) => {
    const open = event.key === "Escape" && document.querySelector("details.confirm[open]");
    if (open) { open.open = false; open.querySelector("summary").focus(); }
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
    if (event.target.matches("[data-select]")) event.target.select();
  });
  document.addEventListener("change", (event) => {
    if (event.target.closest("[data-sent-on-change]")) event.target.form.requestSubmit();
  });
  // A form whose part of the page could not be replaced is sent as a whole, so that the server's message is seen.
  document.addEventListener("htmx:response:error", (event) => {
    const form = event.detail.ctx.sourceElement;
    if (form.matches("form")) form.submit();
  });
  document.querySelectorAll("[data-copy]").forEach((button) => { button.hidden = !navigator.clipboard; });
})();
