// The console: follows the router's events and shows them. It asks and never tells; see router/console/feed.py.

import { duration, hour, keyed, make, number, percent, say, setTrack, stack, time, track } from "./draw.js";
import { explained } from "./explained.js";

const KEY = "baton-key";
const FIRST_BACK_OFF_MS = 1000, MAX_BACK_OFF_MS = 15000, SILENT_MS = 8000;
const at = (id) => document.getElementById(id);

let hello = null; // of the latest connection
let history = new Map(); // of each class: slot -> [slot, kept, missed, refused]
let watching = null; // the AbortController of the connection
let isPaused = false;

// The connection

async function watch() {
  let backOff = FIRST_BACK_OFF_MS;
  while (true) {
    await visible();
    watching = new AbortController();
    try {
      await follow(watching.signal, () => (backOff = FIRST_BACK_OFF_MS));
      health("lost", "the router ended the connection");
    } catch (problem) {
      if (problem instanceof Refused) {
        await askForKey(problem.message);
        continue;
      }
      if (!isPaused && !document.hidden) health("lost", `no connection (${problem.message}); trying again`);
    }
    if (isPaused || document.hidden) continue;
    await new Promise((done) => setTimeout(done, backOff));
    backOff = Math.min(2 * backOff, MAX_BACK_OFF_MS);
  }
}

/** Wait until somebody looks: a page in the background asks for nothing. */
async function visible() {
  while (isPaused || document.hidden) await new Promise((done) => addEventListener("look", done, { once: true }));
}

class Refused extends Error {}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** Read server-sent events by fetch, for EventSource cannot send a key. */
async function follow(signal, onEvent) {
  const reply = await fetch("console/events", { headers: headers(), signal, cache: "no-store" });
  if (reply.status === 401) throw new Refused(sessionStorage.getItem(KEY) ? "The router does not know this key." : "");
  if (!reply.ok) throw new Error((await reply.json().catch(() => ({})))?.error?.message ?? `status ${reply.status}`);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", silent = null;
  const alarm = () => {
    clearTimeout(silent);
    silent = setTimeout(() => watching.abort(new Error("the router is silent")), SILENT_MS);
  };
  try {
    for (alarm(); ; alarm()) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        take(text.slice(0, end));
        text = text.slice(end + 2);
        onEvent();
      }
    }
  } finally {
    clearTimeout(silent);
  }
}

function take(event) {
  const lines = event.split("\n");
  const name = lines.find((line) => line.startsWith("event: "))?.slice(7);
  const data = JSON.parse(lines.find((line) => line.startsWith("data: "))?.slice(6) ?? "null");
  if (name === "hello") begin(data);
  else if (name === "update") show(data);
}

function askForKey(problem) {
  at("board").hidden = true;
  at("door").hidden = false;
  health("starting", "waiting for a key");
  say(at("key-problem"), problem);
  at("key").focus();
  return new Promise((done) => {
    at("key-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, at("key").value.trim());
      at("key").value = "";
      at("door").hidden = true;
      done();
    };
  });
}

// What is shown

function begin(data) {
  hello = data;
  history = new Map();
  merge(data.history);
  const ownOnly = data.tenant !== null;
  at("board").hidden = false;
  at("board").classList.toggle("own", ownOnly);
  at("counts").hidden = ownOnly;
  at("events-card").hidden = ownOnly;
  say(at("who"), ownOnly ? `tenant ${data.tenant}` : "");
  say(at("policy"), data.policy);
}

function merge(rows) {
  for (const [name, found] of Object.entries(rows)) {
    const kept = history.get(name) ?? history.set(name, new Map()).get(name);
    for (const row of found) kept.set(row[0], row);
    const newest = Math.max(...kept.keys());
    for (const slot of kept.keys()) if (slot <= newest - hello.buckets) kept.delete(slot);
  }
}

function show(data) {
  merge(data.history);
  health(data.health.status, data.health.reason || data.health.status);
  say(at("clock"), time(data.at));
  classes(data);
  stages(data.classes);
  refusals(data.classes);
  requests(data.requests);
  if (data.workers === undefined) return;
  say(at("model"), data.model);
  say(at("inflight"), number(data.inflight));
  say(at("held"), number(data.held));
  workers(data.workers);
  transfers(data.transfers);
  log("events", data.events, (event) => [event.level, event.text]);
  log("decisions", data.decisions, (made) => ["info", decided(made)]);
  at("decisions-card").hidden = data.decisions.length === 0;
}

function decided(made) {
  const said = made.reason ? `${made.text}: ${made.reason}` : made.text;
  return made.outcome ? `${said} (${made.outcome})` : said;
}

function health(state, words) {
  document.querySelector("#health .dot").dataset.state = state;
  say(at("health-text"), words);
}

function empty(id, isEmpty) {
  const table = at(id);
  table.hidden = isEmpty;
  const note = table.closest("section").querySelector(".empty");
  if (note !== null) note.hidden = !isEmpty;
}

function tone(share, goal) {
  if (share === null) return "soft";
  return share >= goal ? "good" : share >= goal - (1 - goal) ? "warn" : "bad";
}

function classes(data) {
  keyed(at("classes"), data.classes, (c) => c.name, classBegin, (card, c) => {
    const part = (name) => card.querySelector(`[data-part="${name}"]`);
    const now = part("now");
    say(now, percent(c.now.attainment));
    now.className = `big ${tone(c.now.attainment, c.target)}`;
    setTrack(card.querySelector(".track"), c.now.attainment, c.target);
    say(part("hour"), `${percent(c.hour.attainment)} over the hour`);
    part("hour").className = tone(c.hour.attainment, c.target);
    say(part("goodput"), number(c.now.goodput, c.now.goodput < 10 ? 2 : 1));
    say(part("rates"), `${number(c.now.tokens_per_s)} tokens/s · ${number(c.hour.goodput, 2)} kept/s over the hour`);
    for (const name of ["ttft", "tpot"]) {
      const values = c[name] ?? [null, null];
      values.forEach((value, i) => {
        const cell = part(`${name}${i}`);
        say(cell, duration(value));
        cell.className = `n ${value === null ? "soft" : value <= c[`${name}_ms`] ? "" : "bad"}`;
      });
    }
    say(part("doubt"), c.doubts.length ? `Predictions are not trusted: ${c.doubts.join("; ")}` : "");
    curve(part("curve"), c, data);
  });
}

function classBegin(c) {
  const row = (name, label) =>
    make("tr", {}, make("th", { scope: "row" }, label), make("td", { class: "n soft" }, duration(c[`${name}_ms`])),
      make("td", { class: "n", "data-part": `${name}0` }), make("td", { class: "n", "data-part": `${name}1` }));
  const heads = ["", "target", "P50", "P95"].map((text) => make("th", { class: "n", scope: "col" }, text));
  return make("article", { class: "class" },
    make("div", {}, make("h3", {}, c.name), make("p", { class: "soft" }, c.tier.replace("_", " "))),
    make("div", {}, make("p", { class: "big", "data-part": "now" }), make("div", { class: "attained" }, track(0, c.target)),
      make("p", { class: "soft" }, `kept, of ${percent(c.target)} promised`), make("p", { "data-part": "hour" })),
    make("div", { class: "times-box" }, make("p", {}, make("span", { class: "big", "data-part": "goodput" }), " ",
      make("span", { class: "soft" }, "kept/s")), make("p", { class: "soft", "data-part": "rates" }),
      make("table", { class: "times" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, row("ttft", "TTFT"), row("tpot", "TPOT")))),
    make("div", { class: "curve", "data-part": "curve" }), make("p", { class: "doubt warn", "data-part": "doubt" }));
}

/** Draw the hour again when one of its buckets has changed. */
function curve(box, c, data) {
  const rows = history.get(c.name) ?? new Map();
  const perMinute = 60 / hello.bucket_s, newest = Math.floor(data.slot / perMinute);
  const latest = rows.get(data.slot);
  const state = `${data.slot} ${latest}`;
  if (box.dataset.state === state) return;
  box.dataset.state = state;
  const minutes = [];
  for (let minute = newest - 59; minute <= newest; minute++) {
    const sum = { at: data.at - (data.slot - minute * perMinute) * hello.bucket_s, kept: 0, missed: 0, refused: 0 };
    for (let slot = minute * perMinute; slot < (minute + 1) * perMinute; slot++) {
      const row = rows.get(slot);
      if (row === undefined) continue;
      sum.kept += row[1];
      sum.missed += row[2];
      sum.refused += row[3];
    }
    minutes.push(sum);
  }
  const words = `Class ${c.name}, last hour: ${percent(c.hour.attainment)} kept, ${percent(c.target)} promised, ${c.hour.refused} refused`;
  const key = (mark, text) => make("li", {}, make("span", { class: mark }), text);
  box.replaceChildren(hour(minutes, c.target, words),
    make("ul", { class: "legend", "aria-hidden": "true" }, key("line", "attainment"), key("line dashed", "promised"),
      key("swatch keptmark", "kept"), key("swatch lostmark", "missed"), key("swatch refusedmark", "refused"), make("li", {}, "one column a minute")));
}

function stages(found) {
  const box = at("stages");
  const rows = [];
  for (const c of found) {
    if (c.now.timed) rows.push([`${c.name}, last minute`, c.now, "share"]);
    if (c.hour.timed) rows.push([`${c.name}, last hour`, c.hour, "share past"]);
  }
  const state = JSON.stringify(rows.map(([name, sums]) => [name, sums.stages_ms]));
  if (box.dataset.state === state) return;
  box.dataset.state = state;
  if (rows.length === 0) {
    box.replaceChildren(make("p", { class: "empty" }, "no answered request in the last hour"));
    return;
  }
  const bars = rows.map(([name, sums, look]) => {
    const total = sums.stages_ms.reduce((sum, ms) => sum + ms, 0);
    const words = hello.stages.map((stage, i) => `${stage.replace("_", " ")} ${duration(sums.stages_ms[i])}`).join(", ");
    return make("div", { class: look }, make("p", {}, make("span", {}, name), make("span", { class: "soft" }, duration(total))),
      stack(sums.stages_ms, hello.stages, `${name}: ${words}`));
  });
  const sums = rows[0][1];
  const legend = hello.stages.map((stage, i) =>
    make("li", {}, make("span", { class: `swatch s${i}` }), `${stage.replace("_", " ")} ${duration(sums.stages_ms[i])}`));
  box.replaceChildren(...bars, make("ul", { class: "legend" }, ...legend), make("p", { class: "soft" }, `figures: ${rows[0][0]}`));
}

function workers(found) {
  const rows = [];
  for (const worker of found) {
    if (rows.at(-1)?.role !== worker.role) {
      const peers = found.filter((w) => w.role === worker.role);
      rows.push({ key: `role ${worker.role}`, role: worker.role, title: `${worker.role} · ${peers.filter((w) => w.up).length} of ${peers.length} connected` });
    }
    rows.push({ key: worker.id, role: worker.role, worker });
  }
  say(at("pools-note"), found.length ? "" : "no worker is announced");
  keyed(document.querySelector("#workers tbody"), rows, (row) => row.key, workerBegin, (row, { title, worker }) => {
    if (worker === undefined) return say(row.firstElementChild, title);
    const cells = row.children;
    const [words, mood] = workerState(worker);
    say(cells[1], words);
    cells[1].className = mood;
    const up = worker.up;
    say(cells[2], up ? number(worker.running) : "");
    say(cells[3], up ? number(worker.waiting) : "");
    const kv = cells[4].firstElementChild, share = up && worker.kv_total ? worker.kv_used / worker.kv_total : 0;
    kv.hidden = !up;
    kv.dataset.full = share > 0.9 ? "1" : "0";
    setTrack(kv.firstElementChild, share);
    say(kv.lastElementChild, up ? `${percent(share)} of ${number(worker.kv_total)}` : "");
    say(cells[5], up && worker.step_ms ? duration(worker.step_ms) : "");
    say(cells[6], up && worker.owed_tokens ? number(worker.owed_tokens) : "");
  });
}

function workerBegin({ worker, title }) {
  if (worker === undefined) return make("tr", { class: "role" }, make("th", { colspan: 7, scope: "colgroup" }, title));
  const n = () => make("td", { class: "n" });
  return make("tr", {}, make("td", { title: worker.node ? `on ${worker.node}` : null }, worker.id), make("td"), n(), n(),
    make("td", {}, make("div", { class: "kv" }, track(0), make("span", { class: "soft" }))), n(), n());
}

function workerState(worker) {
  if (!worker.up) return ["not connected", "bad"];
  if (worker.draining) return ["draining", "warn"];
  if (worker.breaker !== "closed") return [worker.breaker === "open" ? "left out" : "on trial", "bad"];
  return ["serves", "soft"];
}

function transfers(found) {
  const all = found.reduce((sum, pair) => sum + pair.count, 0);
  say(at("transfers-note"), all ? `${number(all)} requests between ${number(found.length)} pairs` : "");
  const begun = () => make("tr", {}, make("td"), make("td"), make("td", { class: "n" }), make("td", { class: "n" }));
  keyed(document.querySelector("#transfers tbody"), found.slice(0, 12), (t) => `${t.prefill} ${t.decode}`, begun, (row, t) => {
    [t.prefill, t.decode, number(t.count), duration(t.oldest_ms)].forEach((text, i) => say(row.children[i], text));
  });
  empty("transfers", found.length === 0);
}

function refusals(found) {
  const rows = [];
  for (const c of found) {
    for (const [reason, inHour] of Object.entries(c.refusals.hour)) rows.push([reason, c.name, c.refusals.now[reason] ?? 0, inHour]);
  }
  rows.sort((a, b) => b[2] - a[2] || b[3] - a[3]);
  const begun = () => make("tr", {}, make("td"), make("td"), make("td", { class: "n" }), make("td", { class: "n" }));
  keyed(document.querySelector("#refusals tbody"), rows, (r) => `${r[0]} ${r[1]}`, begun, (row, r) => {
    [r[0].replaceAll("_", " "), r[1], number(r[2]), number(r[3])].forEach((text, i) => say(row.children[i], text));
  });
  empty("refusals", rows.length === 0);
}

function requests(found) {
  const hasTenants = found.some((r) => r.tenant);
  document.querySelector("#requests [data-tenant]").hidden = !hasTenants;
  keyed(document.querySelector("#requests tbody"), found, (r) => `${r.tenant} ${r.id}`, requestBegin, (row, r) => {
    const cells = row.children;
    cells[2].hidden = !hasTenants;
    say(cells[4], r.running ? r.verdict : r.state === "other" || r.verdict === "refused" ? r.verdict : r.state === "kept" ? "kept" : r.verdict);
    cells[4].className = { kept: "good", missed: "bad", running: "soft", other: "soft" }[r.state];
    cells[4].title = r.reason;
    say(cells[5], r.decode === null || r.rejected ? "" : r.prefill === null ? r.decode : `${r.prefill} → ${r.decode}`);
    say(cells[6], number(r.prompt_tokens));
    say(cells[7], r.output_tokens ? number(r.output_tokens) : "");
    say(cells[8], r.ttft_ms === null ? "" : duration(r.ttft_ms));
    say(cells[9], r.tpot_ms === null ? "" : duration(r.tpot_ms));
    say(cells[10], duration(r.total_ms));
    const state = `${r.running} ${r.stages_us}`;
    if (cells[11].dataset.state !== state) {
      cells[11].dataset.state = state;
      const isKnown = !r.running && r.ttft_ms !== null;
      cells[11].replaceChildren(...(isKnown ? [stack(r.stages_us, hello.stages, "stages of the time to the first token")] : []));
    }
  });
  empty("requests", found.length === 0);
}

function requestBegin(r) {
  const button = make("button", { type: "button", class: "id", title: r.id }, r.id);
  button.onclick = () => explain(r.id);
  const n = () => make("td", { class: "n" });
  return make("tr", {}, make("td", {}, button), make("td", { class: "soft" }, time(r.at)), make("td", {}, r.tenant), make("td", {}, r.class),
    make("td"), make("td", { class: "soft" }), n(), n(), n(), n(), n(), make("td"));
}

function log(id, found, wordsOf) {
  const mood = { info: "", warning: "warn", error: "bad" };
  const begun = (event) => {
    const [level, text] = wordsOf(event);
    return make("li", {}, make("time", { class: "soft", datetime: new Date(event.at_s * 1000).toISOString() }, time(event.at_s)),
      make("span", { class: mood[level] ?? "" }, event.count > 1 ? `${text} (${number(event.count)} times)` : text));
  };
  const seen = new Map(); // equal lines of one moment are told apart by their number
  const keys = found.map((event) => {
    const key = `${event.at_s} ${wordsOf(event)[1]}`;
    seen.set(key, (seen.get(key) ?? 0) + 1);
    return `${key} ${seen.get(key)}`;
  });
  keyed(at(id), found.map((event, i) => ({ ...event, key: keys[i] })), (event) => event.key, begun, () => {});
  empty(id, found.length === 0);
}

// One request

async function explain(id) {
  const body = at("detail-body"), dialog = at("detail");
  say(at("detail-title"), id);
  body.replaceChildren(make("p", { class: "soft" }, "asking the router"));
  if (!dialog.open) dialog.showModal();
  try {
    const reply = await fetch(`v1/requests/${encodeURIComponent(id)}/explain`, { headers: headers(), cache: "no-store" });
    const told = await reply.json();
    body.replaceChildren(...(reply.ok ? explained(told) : [make("p", { class: "bad" }, told?.error?.message ?? `status ${reply.status}`)]));
  } catch (problem) {
    body.replaceChildren(make("p", { class: "bad" }, `no answer: ${problem.message}`));
  }
}

function look() {
  dispatchEvent(new Event("look"));
}

at("detail-close").onclick = () => at("detail").close();
at("detail").onclick = (event) => event.target === at("detail") && at("detail").close();
at("pause").onclick = () => {
  isPaused = !isPaused;
  at("pause").setAttribute("aria-pressed", String(isPaused));
  say(at("pause"), isPaused ? "Resume" : "Pause");
  if (isPaused) {
    watching?.abort();
    health("starting", "paused");
  } else look();
};
document.addEventListener("visibilitychange", () => (document.hidden ? watching?.abort() : look()));
watch();
