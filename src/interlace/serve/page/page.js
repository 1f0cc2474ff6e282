// Talk with a model. A conversation is a tree: an edit, or another answer, is a branch beside what stood before.

const by = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_tokens"];
const KEPT = "interlace.conversation";
const ROOT = "root";

let tree = { nodes: {}, shown: {}, count: 0, system: "", numbers: {}, model: "" };
let models = [];
let going = null; // {node, abort}
let editing = null; // the id of the message that is edited

// The tree.

const childrenOf = (id) => Object.values(tree.nodes).filter((node) => node.parent === id);

function shownChild(id) {
  const children = childrenOf(id);
  return children.find((node) => node.id === tree.shown[id]) ?? children.at(-1);
}

function shownPath() {
  const path = [];
  for (let node = shownChild(ROOT); node; node = shownChild(node.id)) path.push(node);
  return path;
}

function pathTo(id) {
  const path = [];
  for (let node = tree.nodes[id]; node; node = tree.nodes[node.parent]) path.unshift(node);
  return path;
}

function add(parent, role, text) {
  const id = String(tree.count++);
  tree.nodes[id] = { id, parent, role, text, thought: "", figures: null, error: "" };
  tree.shown[parent] = id;
  return tree.nodes[id];
}

function keep() {
  try {
    localStorage.setItem(KEPT, JSON.stringify(tree));
  } catch {
    tell("The browser keeps no more: this conversation is lost when the page is closed.");
  }
}

function restore() {
  try {
    const found = JSON.parse(localStorage.getItem(KEPT) ?? "null");
    if (found?.nodes) tree = { ...tree, ...found };
  } catch {
    localStorage.removeItem(KEPT);
  }
}

// The server.

function headers() {
  const key = by("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

async function failure(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function get(path) {
  const response = await fetch(path, { headers: headers() });
  if (response.ok) return response.json();
  if (response.status === 401) {
    openSettings(true);
    by("key").focus();
    throw new Error("This server asks for a key: write it under Settings.");
  }
  throw new Error(await failure(response));
}

async function loadModels() {
  try {
    models = (await get("v1/models")).data;
    tell("");
  } catch (error) {
    tell(error.message);
    return;
  }
  by("model").replaceChildren(...models.map((model) => new Option(model.id, model.id)));
  if (models.some((model) => model.id === tree.model)) by("model").value = tree.model;
  chooseModel();
}

function model() {
  return models.find((one) => one.id === by("model").value);
}

function chooseModel() {
  tree.model = by("model").value;
  const why = model()?.no_chat;
  tell(why ? `${tree.model} holds no conversation (${why}): it goes on from your text.` : "");
  keep();
}

function question(path) {
  const numbers = {};
  for (const name of NUMBERS) if (by(name).value !== "") numbers[name] = Number(by(name).value);
  const body = { model: tree.model, stream: true, stream_options: { include_usage: true }, ...numbers };
  if (model()?.no_chat) {
    return ["v1/completions", { max_tokens: 256, ...body, prompt: path.map((node) => node.text).join("") }];
  }
  const system = by("system").value.trim();
  const messages = path.map((node) => ({
    role: node.role,
    content: node.text,
    ...(node.thought && { reasoning_content: node.thought }),
  }));
  return ["v1/chat/completions", { ...body, messages: system ? [{ role: "system", content: system }, ...messages] : messages }];
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue; // a comment
      const data = line.slice("data: ".length);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function answer(parent) {
  const node = add(parent, "assistant", "");
  const abort = new AbortController();
  going = { node, abort };
  const began = performance.now();
  let first = 0;
  draw();
  try {
    const [path, body] = question(pathTo(parent));
    const response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal: abort.signal });
    if (!response.ok) throw new Error(await failure(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (choice) {
        const text = choice.text ?? choice.delta.content ?? "";
        const thought = choice.delta?.reasoning_content ?? "";
        if (!first && (text || thought)) first = performance.now();
        node.text += text;
        node.thought += thought;
        if (choice.finish_reason === "length") node.error = "It had all the tokens that it may have.";
        grow(node);
      }
      if (event.usage) await count(node, event.usage, began, first || performance.now());
    }
  } catch (error) {
    node.error = error.name === "AbortError" ? "Stopped." : error.message;
  }
  going = null;
  keep();
  draw();
  by("text").focus({ preventScroll: true });
}

async function count(node, usage, began, first) {
  const made = usage.completion_tokens;
  const seconds = (performance.now() - first) / 1000;
  node.figures = {
    made,
    rate: made > 1 && seconds > 0 ? (made - 1) / seconds : 0,
    wait: (first - began) / 1000,
    read: usage.prompt_tokens,
    reused: usage.prompt_tokens_details?.cached_tokens ?? 0,
  };
  const asked = new URLSearchParams({ model: tree.model, tokens: usage.total_tokens });
  try {
    Object.assign(node.figures, await get(`memory?${asked}`));
  } catch {
    // the answer stands without these figures
  }
}

// What is seen.

function tell(text) {
  by("notice").textContent = text;
  by("notice").hidden = !text;
}

function element(name, fields = {}, ...children) {
  const made = Object.assign(document.createElement(name), fields);
  made.append(...children);
  return made;
}

function button(text, name, press) {
  const made = element("button", { type: "button", textContent: text, onclick: press });
  made.setAttribute("aria-label", name);
  return made;
}

function written(text) {
  // Only blocks of code are told apart; everything is text, never markup.
  return text.split(/^```.*\n?/m).map((part, i) => (i % 2 ? element("pre", { textContent: part }) : part));
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; count >= 1000 && unit < units.length - 1; unit++) count /= 1000;
  return `${count < 10 && unit ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

function figures(node) {
  const seen = node.figures;
  if (!seen) return [];
  const reused = seen.reused ? `${seen.reused} of ${seen.read} tokens reused` : `${seen.read} tokens read`;
  const speed = seen.rate ? `, ${seen.rate.toFixed(seen.rate < 10 ? 1 : 0)} tokens/s` : "";
  const lines = [`${seen.made} tokens${speed}, first after ${seen.wait.toFixed(2)} s · ${reused}`];
  const found = [element("p", { className: "figures", textContent: lines[0] })];
  if (seen.state_bytes) {
    const share = Math.min(1, seen.state_bytes / seen.transformer_bytes);
    const bar = element("span", { className: "bar" }, element("span"));
    bar.firstChild.style.width = `${100 * share}%`;
    const text = `state ${bytes(seen.state_bytes)} · a transformer's cache would be ${bytes(seen.transformer_bytes)}`;
    found.push(element("p", { className: "figures" }, text, bar, `a branch here copies ${bytes(seen.state_bytes)}`));
  }
  return found;
}

function tools(node) {
  const made = element("div", { className: "tools" });
  const siblings = childrenOf(node.parent);
  if (siblings.length > 1) {
    const at = siblings.indexOf(node);
    const go = (step) => () => {
      tree.shown[node.parent] = siblings[(at + step + siblings.length) % siblings.length].id;
      keep();
      draw();
    };
    made.append(
      button("‹", "Earlier branch", go(-1)),
      `branch ${at + 1} of ${siblings.length}`,
      button("›", "Later branch", go(1)),
    );
  }
  if (going) return made;
  made.append(button("Edit", "Edit this message as a branch", () => edit(node)));
  if (node.role === "assistant") {
    made.append(button("Again", "Another answer as a branch", () => answer(node.parent)));
    made.append(button("Copy", "Copy this answer", () => navigator.clipboard?.writeText(node.text)));
  }
  return made;
}

function edit(node) {
  editing = node.id;
  draw();
  const box = by("log").querySelector(".edit textarea");
  box.focus();
  box.setSelectionRange(box.value.length, box.value.length);
}

function editor(node) {
  const box = element("textarea", { value: node.text, rows: Math.min(12, node.text.split("\n").length + 1) });
  box.setAttribute("aria-label", "Edited message");
  const close = () => {
    editing = null;
    draw();
  };
  const send = () => {
    editing = null;
    const made = add(node.parent, node.role, box.value);
    made.thought = node.role === "assistant" ? node.thought : "";
    keep();
    if (node.role === "user") answer(made.id);
    else draw();
  };
  box.onkeydown = (event) => {
    if (event.key === "Escape") close();
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    } else return;
    event.stopPropagation();
  };
  const save = button(node.role === "user" ? "Send as a branch" : "Keep as a branch", "Keep the edit as a branch", send);
  return element("div", { className: "edit" }, box, element("div", { className: "tools" }, save, button("Cancel", "Cancel the edit", close)));
}

function item(node) {
  const made = element("li", { className: node.role });
  made.dataset.id = node.id;
  fill(made, node);
  return made;
}

function fill(made, node) {
  const busy = going?.node === node;
  made.classList.toggle("going", busy);
  const who = element("p", { className: "who", textContent: node.role === "user" ? "you" : tree.model });
  if (editing === node.id) {
    made.replaceChildren(who, editor(node));
    return;
  }
  const parts = [who];
  if (node.thought) {
    const open = made.querySelector("details")?.open ?? false;
    parts.push(element("details", { open }, element("summary", { textContent: "thought" }), element("div", { textContent: node.thought })));
  }
  parts.push(element("div", { className: "body" }, ...written(node.text)));
  if (node.error) parts.push(element("p", { className: "figures", textContent: node.error }));
  made.replaceChildren(...parts, ...figures(node), tools(node));
}

let waiting = false;

function grow(node) {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const made = by("log").querySelector(`[data-id="${node.id}"]`);
    const low = innerHeight + scrollY >= document.body.scrollHeight - 80;
    if (made) fill(made, node);
    if (low) scrollTo(0, document.body.scrollHeight);
  });
}

function draw() {
  const path = shownPath();
  by("log").replaceChildren(...path.map(item));
  by("empty").hidden = path.length > 0;
  by("send").hidden = Boolean(going);
  by("stop").hidden = !going;
  if (going) scrollTo(0, document.body.scrollHeight);
}

function openSettings(open) {
  by("settings").hidden = !open;
  by("show").setAttribute("aria-expanded", String(open));
}

function stop() {
  going?.abort.abort();
}

by("ask").onsubmit = (event) => {
  event.preventDefault();
  const text = by("text").value;
  if (!text.trim() || going || !tree.model) return;
  by("text").value = "";
  const last = shownPath().at(-1);
  const node = add(last?.id ?? ROOT, "user", text);
  keep();
  answer(node.id);
};
by("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    by("ask").requestSubmit();
  }
};
by("stop").onclick = stop;
by("new").onclick = () => {
  stop();
  tree = { ...tree, nodes: {}, shown: {}, count: 0 };
  editing = null;
  keep();
  draw();
  by("text").focus();
};
by("show").onclick = () => openSettings(by("settings").hidden);
by("settings").onsubmit = (event) => event.preventDefault();
by("settings").onchange = () => {
  tree.system = by("system").value;
  for (const name of NUMBERS) tree.numbers[name] = by(name).value;
  sessionStorage.setItem("interlace.key", by("key").value);
  keep();
};
by("key").onchange = loadModels;
by("model").onchange = chooseModel;
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});

restore();
by("key").value = sessionStorage.getItem("interlace.key") ?? "";
by("system").value = tree.system;
for (const name of NUMBERS) by(name).value = tree.numbers[name] ?? "";
draw();
loadModels();
