// Forms and buttons that call the public API: data-api="POST /api/v1/…". The session cookie is SameSite=Strict and
// the API checks Origin, so another site cannot do the same. What happens next is in data-then.
(() => {
  const put = (target, path, value) => {
    const names = path.split(".");
    const last = names.pop();
    for (const name of names) target = target[name] ??= {};
    target[last] = value;
  };

  const value = (field) => {
    if (field.type === "checkbox") return field.checked;
    if (field.type === "file") return field.files[0].text();
    if (field.dataset.as === "json") return JSON.parse(field.value);
    if (field.dataset.as === "words") return field.value.split(/[\s,]+/).filter(Boolean);
    return field.dataset.as === "number" ? Number(field.value) : field.value.trim();
  };

  // With data-raw the file that was chosen is the whole body, as it is.
  const body = async (form) => {
    if ("raw" in form.dataset) return value(form.querySelector("[type=file]"));
    const document_ = form.dataset.body ? JSON.parse(form.dataset.body) : {};
    for (const field of form.elements || []) {
      if (field.name && !field.disabled && field.value !== "") put(document_, field.name, await value(field));
    }
    return document_;
  };

  const call = async (address, content) => {
    const [method, path] = address.split(" ");
    const answer = await fetch(path, {
      method,
      headers: { "content-type": "application/json", accept: "application/json" },
      body: method === "DELETE" ? undefined : typeof content === "string" ? content : JSON.stringify(content),
    });
    const text = await answer.text();
    let found = {};
    try { found = text ? JSON.parse(text) : {}; } catch { found = { detail: text.slice(0, 200) }; }
    if (!answer.ok) throw new Error(problem(found, answer.status));
    return found;
  };

  const problem = (found, status) => {
    const detail = Array.isArray(found.detail) ? found.detail.map((d) => `${(d.loc || []).join(".")}: ${d.msg}`).join("; ") : found.detail;
    return detail || found.title || `HTTP ${status}`;
  };

  const say = (text, bad = false) => {
    const toast = document.createElement("p");
    toast.className = bad ? "toast bad" : "toast";
    toast.textContent = text;
    document.getElementById("toasts").append(toast);
    setTimeout(() => toast.remove(), bad ? 9000 : 4000);
  };

  const fill = (root, answer) => {
    for (const slot of root.querySelectorAll("[data-out]")) {
      const found = slot.dataset.out.split(".").reduce((at, name) => at?.[name], answer);
      slot.textContent = (slot.dataset.before || "") + (typeof found === "number" ? +found.toPrecision(4) : typeof found === "object" ? JSON.stringify(found, null, 2) : found ?? "");
    }
    for (const part of root.querySelectorAll("[data-after]")) part.hidden = false;
  };

  const then = (element, answer) => {
    const [what, where] = (element.dataset.then || "say").split(/:(.*)/s);
    if (what === "goto") location.assign(where.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(answer[name] ?? "")));
    else if (what === "fill") fill(element, answer);
    else if (what === "reload") location.reload();
    else if (what === "refresh") { say(element.dataset.done || landreeve.words.done); element.reset?.(); landreeve.reconnect(); }
    else say(element.dataset.done || landreeve.words.done);
  };

  const confirmed = (element) => {
    const box = document.getElementById("confirm");
    if (!element.dataset.confirm) return Promise.resolve({ reason: "" });
    box.querySelector("[data-question]").textContent = element.dataset.confirm;
    box.querySelector("[value=yes]").textContent = element.dataset.label || element.textContent.trim();
    const asked = box.querySelector("[data-asked]");
    const reason = asked.querySelector("input");
    asked.hidden = !element.dataset.ask;
    asked.querySelector("label").textContent = element.dataset.askLabel || "";
    reason.required = Boolean(element.dataset.ask);
    reason.value = "";
    box.returnValue = "";
    box.showModal();
    return new Promise((done) => box.addEventListener("close", () => done(box.returnValue === "yes" && { reason: reason.value.trim() }), { once: true }));
  };

  const run = async (element) => {
    const trouble = element.querySelector?.(".form-error");
    const button = element.matches("form") ? element.querySelector("[type=submit]") : element;
    const answer = await confirmed(element);
    if (!answer) return;
    if (trouble) trouble.textContent = "";
    button?.setAttribute("aria-busy", "true");
    try {
      const content = await body(element);
      if (element.dataset.ask) content[element.dataset.ask] = answer.reason;
      then(element, await call(element.dataset.api, content));
    } catch (error) {
      const text = error instanceof TypeError ? landreeve.words.unreachable : error.message;
      if (trouble) trouble.textContent = text;
      else say(text, true);
    } finally {
      button?.removeAttribute("aria-busy");
    }
  };

  document.addEventListener("submit", (event) => {
    if (!event.target.dataset.api) return;
    event.preventDefault();
    run(event.target);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-api]");
    if (button && !button.hasAttribute("aria-busy")) run(button);
  });
  landreeve.say = say;
})();
