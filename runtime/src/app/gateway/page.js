"use strict";

const at = (id) => document.getElementById(id);
let turns = [];
let running = null;
let model = "ombra";
let hasChat = true;

function headers() {
  const all = { "Content-Type": "application/json" };
  if (at("key").value) all["Authorization"] = "Bearer " + at("key").value;
  return all;
}

function askForKey() {
  at("key").hidden = at("key-label").hidden = false;
}

function fail(message) {
  at("error").textContent = message;
  at("error").hidden = message === "";
}

// The data of every event of a stream, until it ends.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ")) yield line.slice(6);
    }
  }
}

function scroll() {
  at("turns").scrollTop = at("turns").scrollHeight;
}

function addTurn(role, text) {
  const item = document.createElement("li");
  item.className = role;
  item.textContent = text;
  at("turns").append(item);
  scroll();
  return item;
}

async function ask(text) {
  fail("");
  const own = turns;
  own.push({ role: "user", content: text });
  addTurn("user", text);
  const item = addTurn("assistant running", "");
  running = new AbortController();
  at("send").disabled = true;
  at("stop").disabled = false;
  let answer = "";
  try {
    const asked = hasChat ? { messages: own } : { prompt: text, max_tokens: 64 };
    const response = await fetch(hasChat ? "/v1/chat/completions" : "/v1/completions", {
      method: "POST",
      headers: headers(),
      body: JSON.stringify({ model, stream: true, ...asked }),
      signal: running.signal,
    });
    if (response.status === 401) askForKey();
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const piece = JSON.parse(data);
      if (piece.error) throw new Error(piece.error.message);
      const [choice] = piece.choices;
      answer += (hasChat ? choice.delta.content : choice.text) ?? "";
      item.textContent = answer;
      scroll();
    }
  } catch (error) {
    if (error.name !== "AbortError") fail(error.message);
  }
  item.className = "assistant";
  if (answer === "") {
    // A turn without an answer is taken back.
    own.pop();
  } else {
    own.push({ role: "assistant", content: answer });
  }
  running = null;
  at("send").disabled = false;
  at("stop").disabled = true;
  at("prompt").focus();
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit + 1 < units.length) {
    count /= 1000;
    unit += 1;
  }
  return (unit ? count.toFixed(count < 10 ? 2 : 1) : count) + " " + units[unit];
}

function bar(name, seen, predicted) {
  at(name + "-bar").max = Math.max(predicted, 1);
  at(name + "-bar").value = seen;
}

const PHASES = {
  closed: "no session", connecting: "connecting", setup: "agreeing on keys and weights", running: "preparing a step",
  prefill: "reading the prompt", decode: "making a token", idle: "waiting for you",
};

function show(status) {
  model = status.model;
  hasChat = status.chat;
  at("queued").textContent = status.queued;
  const quiet = (session) => ["closed", "idle"].includes(session.phase);
  // The session that works, or the one that worked last.
  const done = (session) => session.done.steps;
  const busy = status.sessions.find((session) => !quiet(session));
  const session = busy ?? status.sessions.reduce((a, b) => (done(b) > done(a) ? b : a));
  at("phase").textContent =
    session.phase === "waiting" ? `waiting for ${session.before} sessions before this one` : PHASES[session.phase] ?? session.phase;
  const total = session.done;
  at("total-tokens").textContent = total.steps;
  at("total-sent").textContent = bytes(total.sent);
  at("total-rounds").textContent = total.rounds;
  at("speed").textContent = total.steps ? (total.seconds / total.steps).toFixed(2) : "–";
  const step = session.step;
  if (!step) return;
  at("step").textContent = `${step.adds} new, ${step.keeps} kept`;
  at("sent").textContent = bytes(step.sent);
  at("sent-predicted").textContent = bytes(step.predicted.sent);
  at("received").textContent = bytes(step.received);
  at("rounds").textContent = step.rounds;
  at("rounds-predicted").textContent = step.predicted.rounds;
  at("all").textContent = bytes(step.predicted.all_parties);
  at("seconds").textContent = step.seconds.toFixed(1);
  bar("sent", step.sent, step.predicted.sent);
  bar("rounds", step.rounds, step.predicted.rounds);
}

async function watch() {
  for (;;) {
    try {
      const response = await fetch("/v1/ombra/status", { headers: headers() });
      if (response.status === 401) askForKey();
      if (response.ok) {
        for await (const data of events(response)) show(JSON.parse(data));
      }
    } catch {
      at("phase").textContent = "not connected";
    }
    await new Promise((later) => setTimeout(later, 1000));
  }
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("prompt").value;
  if (running || text.trim() === "") return;
  at("prompt").value = "";
  ask(text);
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("stop").addEventListener("click", () => running?.abort());
at("new").addEventListener("click", () => {
  running?.abort();
  turns = [];
  at("turns").replaceChildren();
  fail("");
});
watch();
