// The page: it follows the API by way of the server that it came from, and brings what is
// seen up to date at most once a frame.
import { objects, kinds, endpointsOf, put, remove, setRun, stateOf, rackOf, sessionsOf, isDown, peerOf, nodeAt, seenOf, ago, used, size, within, now } from "./model.js";
import { draw as drawMap } from "./map.js";

const $ = id => document.getElementById(id);
const order = new Intl.Collator("en", { numeric: true }).compare;
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const clock = t => new Date(t).toLocaleTimeString("en-GB");

// --- the token: out of the address, so that it is in no history, and kept for reloads

const token = (() => {
  const said = new URLSearchParams(location.hash.slice(1)).get("token");
  if (said) {
    sessionStorage.setItem("token", said);
    history.replaceState(null, "", location.pathname);
  }
  return said || sessionStorage.getItem("token") || "";
})();

// ask is fetch with the token; what fails throws what is to be said.
async function ask(path, signal) {
  let answer;
  try {
    answer = await fetch(path, { headers: { Authorization: "Bearer " + token }, signal, cache: "no-store" });
  } catch (e) {
    if (signal?.aborted) throw e;
    throw new Error("netctl ui does not answer: is it still running?");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(said.error || answer.statusText), { status: answer.status });
}

// --- following

const quiet = 40000; // ms without a word after which a stream is taken for dead; the API says one every 15 s
let revision = 0, loading = true, told = new Set(), lastLive = 0;

async function follow() {
  for (let wait = 250; ; wait = Math.min(wait * 2, 4000)) {
    try {
      await run();
      await stream(() => { wait = 250; });
      link("waiting", "The API ended the stream: connecting again …");
    } catch (e) {
      const since = lastLive ? ` What is shown is of ${clock(lastLive)}.` : "";
      link("away", `${e.status === 401 ? "" : "Not connected: "}${e.message}${since}${e.status === 401 ? "" : " Trying again."}`);
      if (e.status === 401) return;
    }
    await new Promise(done => setTimeout(done, wait));
  }
}

async function run() {
  const r = await (await ask("ui/run")).json();
  setRun(r);
  $("run").textContent = `netctl ${r.version}, by the API at ${r.server}`;
}

// stream takes events until the API ends it; live is called once it is complete.
async function stream(live) {
  const stop = new AbortController();
  const path = "v1/watch?" + kinds.map(k => "kind=" + k).join("&") + (revision ? "&after=" + revision : "");
  let timer;
  const heard = () => { clearTimeout(timer); timer = setTimeout(() => stop.abort(new Error("the API has not said a word for 40 s")), quiet); };
  heard();
  try {
    const answer = await ask(path, stop.signal);
    if (revision) settled(live); // it goes on from there, unless reset comes
    else begin();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) take(part, live);
    }
  } finally {
    clearTimeout(timer);
    stop.abort();
  }
}

function begin() {
  loading = true;
  told = new Set();
}

// settled is called when what is shown is what there is.
function settled(live) {
  loading = false;
  lastLive = now();
  live();
  link("live", "Live");
  stale();
}

// take is one server-sent event.
function take(part, live) {
  let name = "", data = "", id = 0;
  for (const line of part.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data = line.slice(6);
    else if (line.startsWith("id: ")) id = +line.slice(4);
  }
  if (!name) return void (lastLive = now());
  const o = JSON.parse(data);
  switch (name) {
  case "put":
    if (loading) told.add(o.kind + " " + o.metadata.name);
    changed(o.kind, o, put(o, loading));
    break;
  case "delete":
    gone(o.kind, o.name);
    break;
  case "reset":
    begin();
    break;
  case "synced": // what was not told is gone
    if (loading) for (const kind in objects) for (const n of [...objects[kind].keys()]) if (!told.has(kind + " " + n)) gone(kind, n);
    revision = o.revision;
    settled(live);
    break;
  case "resync":
    revision = 0;
    break;
  case "error":
    throw new Error(o.error);
  }
  if (id) revision = Math.max(revision, id);
  if (!loading) lastLive = now();
}

// link says how the page is connected; only a change is said.
function link(state, text) {
  const e = $("link");
  e.dataset.state = state;
  if (e.textContent !== text) e.textContent = text;
}

// --- what has to be drawn

let dirty = new Set(), all = true, parts = new Set(["sessions", "nodes", "blocks", "endpoints", "matrix"]), asked = false, chosen = "";

function changed(kind, o, words) {
  if (!words.length && (kind !== "Report" && kind !== "Block")) return;
  switch (kind) {
  case "Node": all = true; parts.add("sessions"); break;
  case "Report": dirty.add(o.metadata.name.split("/")[0]); if (o.metadata.name.endsWith("/speaker")) parts.add("sessions"); break;
  case "Endpoint": dirty.add(o.spec.node); parts.add("endpoints").add("matrix"); break;
  case "Profile": case "Policy": case "Tier": case "NetworkSet": parts.add("matrix"); break;
  case "Pool": case "Block": parts.add("blocks"); break;
  }
  parts.add("nodes");
  if (!loading) words.forEach(note);
  stale();
}

function gone(kind, name) {
  const old = objects[kind]?.get(name);
  if (old) changed(kind, old, remove(kind, name));
  if (kind === "Report") { all = true; parts.add("sessions").add("nodes"); stale(); }
}

function stale() {
  if (asked || loading) return;
  asked = true;
  // Frames stop in a tab that nobody sees; what is there must be right when it is looked at.
  if (document.hidden) setTimeout(redraw, 500);
  else requestAnimationFrame(redraw);
}

// redraw brings up to date what changed, and measures itself, layout included.
function redraw() {
  asked = false;
  if (loading) return;
  const start = performance.now(), had = parts, whole = all;
  const names = dirty;
  parts = new Set(); dirty = new Set(); all = false;
  drawMap(whole ? null : names, chosen, had.has("sessions"));
  if (had.has("nodes")) { summary(); drawNodes(); drawDetail(); }
  if (had.has("blocks")) drawBlocks();
  if (had.has("endpoints")) drawEndpoints();
  document.documentElement.getBoundingClientRect();
  performance.measure(whole ? "redraw-all" : "redraw", { start, end: performance.now() });
  if (performance.getEntriesByType("measure").length > 1000) performance.clearMeasures();
  if (had.has("matrix")) matrixSoon();
}

// --- tables: rows by key, of which only the cells that differ are touched, so that focus,
// selection and place stay

const rows = new WeakMap();

function fill(table, list, key, cells) {
  const body = table.tBodies[0] || table.createTBody();
  let have = rows.get(body);
  if (!have) rows.set(body, have = new Map());
  const wanted = new Set();
  let at = body.firstElementChild;
  for (const item of list) {
    const k = key(item);
    wanted.add(k);
    let tr = have.get(k);
    if (!tr) have.set(k, tr = document.createElement("tr"));
    cells(item).forEach((c, i) => cell(tr, i, c));
    if (tr === at) at = at.nextElementSibling;
    else body.insertBefore(tr, at);
  }
  for (const [k, tr] of have) if (!wanted.has(k)) { tr.remove(); have.delete(k); }
}

// cell is text, or {text, cls, node} (a button that chooses a node), or {meter, of}.
function cell(tr, i, c) {
  if (typeof c !== "object") c = { text: c };
  let td = tr.children[i];
  if (!td) {
    td = document.createElement(i === 0 ? "th" : "td");
    if (i === 0) td.scope = "row";
    tr.append(td);
  }
  if (td.className !== (c.cls || "")) td.className = c.cls || "";
  if (c.meter !== undefined) {
    let m = td.querySelector("meter");
    if (!m) { td.replaceChildren(m = document.createElement("meter"), document.createTextNode("")); m.min = 0; }
    const text = `${c.of ? Math.round(100 * c.meter / c.of) : 0} %`;
    if (m.max !== c.of || m.value !== c.meter) { m.max = c.of || 1; m.high = m.max * .85; m.optimum = 0; m.value = c.meter; m.setAttribute("aria-label", text); td.lastChild.data = " " + text; }
    return;
  }
  const text = String(c.text);
  if (c.node && !td.querySelector("button")) {
    const b = document.createElement("button");
    b.type = "button";
    td.replaceChildren(b);
  }
  const to = c.node ? td.firstElementChild : td;
  if (c.node) to.dataset.choose = c.node;
  if (to.textContent !== text) to.textContent = text;
}

const severity = { bad: 0, dead: 1, warn: 2, ok: 3 };

function summary() {
  let down = 0, sessions = 0, unwell = 0, usedAll = 0, sizeAll = 0;
  for (const n of objects.Node.values()) {
    const list = sessionsOf(n.metadata.name);
    sessions += list.length;
    down += list.filter(isDown).length;
    if (stateOf(n)[0] !== "ok") unwell++;
  }
  for (const b of objects.Block.values()) { usedAll += used(b); sizeAll += size(b); }
  const list = [["nodes", objects.Node.size], ["need a look", unwell, unwell], ["ends of sessions up", `${sessions - down} of ${sessions}`, down],
    ["endpoints", objects.Endpoint.size.toLocaleString("en")], ["profiles", objects.Profile.size], ["networks", objects.Network.size],
    ["addresses in use", `${usedAll.toLocaleString("en")} of ${sizeAll.toLocaleString("en")}`]];
  const dl = $("summary");
  list.forEach(([word, value, bad], i) => {
    let div = dl.children[i];
    if (!div) { div = document.createElement("div"); div.append(document.createElement("dt"), document.createElement("dd")); dl.append(div); }
    const [dt, dd] = div.children;
    if (dt.textContent !== word) dt.textContent = word;
    if (dd.textContent !== String(value)) dd.textContent = value;
    dd.className = bad ? "bad" : "";
  });
}

function drawNodes() {
  const wanted = $("node-filter").value.trim().toLowerCase();
  const list = [...objects.Node.values()].filter(n => !wanted || `${n.metadata.name} ${rackOf(n)}`.toLowerCase().includes(wanted)).map(n => [n, stateOf(n)]);
  list.sort((a, b) => severity[a[1][0]] - severity[b[1][0]] || order(a[0].metadata.name, b[0].metadata.name));
  fill($("nodes"), list.slice(0, 500), x => x[0].metadata.name, ([n, [cls, sign, words]]) => {
    const name = n.metadata.name, sessions = sessionsOf(name);
    return [{ text: name, node: name }, { text: `${sign} ${words}`, cls }, rackOf(n), endpointsOf.get(name)?.size || 0, `${sessions.filter(s => s.state === "Established").length} of ${sessions.length}`, ago(seenOf(name))];
  });
}

// drawDetail shows the chosen node, or without one all sessions that are not up.
function drawDetail() {
  const n = objects.Node.get(chosen);
  if (chosen && !n) chosen = "";
  const title = n ? `Node ${chosen}: ${stateOf(n)[2]}, ${(n.spec.addresses || []).join(", ")}` : "Sessions that are not up";
  if ($("detail-title").textContent !== title) $("detail-title").textContent = title;
  $("detail-close").hidden = !n;
  let list = [];
  for (const name of n ? [chosen] : objects.Node.keys()) for (const s of sessionsOf(name)) if (n || isDown(s)) list.push([name, s]);
  list.sort((a, b) => isDown(b[1]) - isDown(a[1]) || order(a[0], b[0]) || order(peerOf(a[1]), peerOf(b[1])));
  const more = list.length - 200;
  list = list.slice(0, 200);
  if (more > 0) list.push(["", { peer: `and ${more} more`, state: "" }]);
  if (!list.length) list.push(["", { peer: n ? "no sessions" : "every session is up", state: "" }]);
  fill($("sessions"), list, x => x[0] + " " + peerOf(x[1]), ([name, s]) => [name ? { text: name, node: name } : "", nodeAt(s.peer) ? `${nodeAt(s.peer)} (${s.peer})` : peerOf(s),
    { text: s.state === "Established" ? "✓ up" : s.state ? `${s.off ? "–" : "✕"} ${s.state}` : "", cls: s.state === "Established" ? "ok" : isDown(s) && s.state ? "bad" : "" },
    s.state ? ago(s.since) : "", s.off ? "wanted so" : s.reason || ""]);
  const problems = n ? objects.Report.get(chosen + "/agent")?.status.problems || [] : [];
  if ($("problems").dataset.of !== chosen + problems.join()) {
    $("problems").dataset.of = chosen + problems.join();
    $("problems").replaceChildren(...problems.map(p => Object.assign(document.createElement("li"), { textContent: p })));
  }
}

function choose(name) {
  const before = chosen;
  chosen = name;
  drawMap(new Set([before, name]), chosen, true);
  drawDetail();
  if (name) $("detail-title").focus({ preventScroll: false });
}

// --- addresses

const figures = new Map(); // of pools

function drawBlocks() {
  const pools = [...objects.Pool.values()].sort((a, b) => order(a.spec.cidr, b.spec.cidr)), blocks = [...objects.Block.values()];
  const of = new Map(pools.map(p => [p, []]));
  for (const b of blocks) {
    const p = pools.find(p => within(b.spec.cidr, p.spec.cidr));
    if (p) of.get(p).push(b);
  }
  fill($("pools"), pools, p => p.metadata.name, p => {
    const mine = of.get(p), n = mine.reduce((s, b) => s + used(b), 0), room = mine.reduce((s, b) => s + size(b), 0);
    return [p.spec.cidr + (p.spec.disabled ? " (disabled)" : ""), p.spec.encap || "none", claimed(p, mine.length), n.toLocaleString("en"), { meter: n, of: room }];
  });
  blocks.sort((a, b) => used(b) / size(b) - used(a) / size(a) || order(a.spec.cidr, b.spec.cidr));
  const most = 100;
  $("blocks-note").textContent = blocks.length > most ? `The ${most} fullest of ${plural(blocks.length, "block")}.` : "";
  fill($("blocks"), blocks.slice(0, most), b => b.metadata.name, b => [b.spec.cidr, objects.Node.has(b.spec.affinity) ? { text: b.spec.affinity, node: b.spec.affinity } : b.spec.affinity || "", used(b), size(b) - used(b), { meter: used(b), of: size(b) }]);
  for (const p of pools) figure(p, of.get(p));
  for (const [name, f] of figures) if (!objects.Pool.has(name)) { f.remove(); figures.delete(name); }
}

// claimed is how many blocks of a pool are, of how many.
function claimed(p, n) {
  const all = 2 ** ((p.spec.blockSize || 0) - p.spec.cidr.split("/")[1]);
  return all >= 1 && all < 1e6 ? `${n} of ${all.toLocaleString("en")}` : String(n);
}

// figure is a pool's blocks as squares that fill from below.
function figure(p, blocks) {
  let f = figures.get(p.metadata.name);
  if (!f) {
    f = document.createElement("figure");
    f.append(document.createElementNS("http://www.w3.org/2000/svg", "svg"), document.createElement("figcaption"));
    figures.set(p.metadata.name, f);
    $("block-maps").append(f);
  }
  blocks.sort((a, b) => order(a.spec.cidr, b.spec.cidr));
  const state = blocks.map(b => used(b) + "/" + size(b)).join();
  if (f.dataset.state === state) return;
  f.dataset.state = state;
  const columns = Math.min(50, Math.max(8, Math.ceil(Math.sqrt(blocks.length * 3)))), side = 14, svg = f.firstElementChild;
  svg.setAttribute("width", columns * side);
  svg.setAttribute("height", Math.max(1, Math.ceil(blocks.length / columns)) * side);
  const NS = svg.namespaceURI, list = document.createDocumentFragment();
  const rect = (cls, x, y, w, h) => { const r = document.createElementNS(NS, "rect"); r.setAttribute("x", x); r.setAttribute("y", y); r.setAttribute("width", w); r.setAttribute("height", h); if (cls) r.setAttribute("class", cls); list.append(r); };
  blocks.forEach((b, i) => {
    const x = i % columns * side, y = Math.floor(i / columns) * side, part = used(b) / size(b), h = Math.round((side - 2) * part);
    rect("", x, y, side - 2, side - 2);
    if (h) rect(part > .95 ? "full" : "used", x, y + side - 2 - h, side - 2, h);
  });
  svg.replaceChildren(list);
  f.lastElementChild.textContent = `${p.spec.cidr}: ${plural(blocks.length, "block")}`;
}

// --- endpoints

function drawEndpoints() {
  const wanted = $("endpoint-filter").value.trim().toLowerCase(), most = 100, list = [];
  let found = 0;
  for (const e of objects.Endpoint.values()) {
    if (wanted && !e.text.includes(wanted)) continue;
    if (++found <= most) list.push(e);
  }
  list.sort((a, b) => order(a.metadata.name, b.metadata.name));
  const text = found > most ? `${plural(found, "endpoint")}, of which ${most} are shown.` : plural(found, "endpoint") + ".";
  if ($("endpoints-note").textContent !== text) $("endpoints-note").textContent = text;
  fill($("endpoint-table"), list, e => e.metadata.name, e => [e.metadata.name, (e.spec.addresses || []).join(", "), e.spec.network || "", (e.spec.profiles || []).join(", ")]);
}

// --- the matrix

const signs = { all: "●", some: "◐", none: "○", apart: "–", alone: "–", unjudged: "?" };
const wordsOf = c => ({ all: "everything", some: c.open, none: "nothing", apart: "no address of one family", alone: "itself", unjudged: "not judged for lack of time: open it" })[c.verdict];
let matrix = null, asking = false, again = false, shown = "";

// matrixSoon asks for it, one question at a time, and not all the time.
async function matrixSoon() {
  if (asking) { again = true; return; }
  asking = true;
  again = false;
  try {
    matrix = await (await ask("ui/matrix?by=" + document.querySelector("[name=by]:checked").value)).json();
    drawMatrix();
  } catch (e) {
    $("matrix-note").textContent = e.message;
  }
  setTimeout(() => { asking = false; if (again) matrixSoon(); }, 1000);
}

function drawMatrix() {
  const { groups, cells, left } = matrix;
  const same = JSON.stringify([groups, cells]);
  const note = !groups.length ? "There are no endpoints yet." : left ? `The ${groups.length} largest groups; ${plural(left, "more")} are not shown.` : "";
  if ($("matrix-note").textContent !== note) $("matrix-note").textContent = note;
  if (same === shown) return;
  shown = same;
  const focused = document.activeElement?.dataset?.at, table = $("matrix"), label = g => (g.name + (g.network ? ` (${g.profiles.join(", ")})` : ""));
  const head = document.createElement("thead"), body = document.createElement("tbody");
  const title = (g, scope) => {
    const th = document.createElement("th");
    th.scope = scope;
    th.append(label(g));
    for (const text of [plural(g.endpoints, "endpoint"), ...(g.traits || [])]) th.append(Object.assign(document.createElement("small"), { textContent: text }));
    return th;
  };
  const top = head.insertRow();
  top.append(Object.assign(document.createElement("th"), { textContent: "from \\ to" }), ...groups.map(g => title(g, "col")));
  cells.forEach((line, i) => {
    const tr = body.insertRow();
    tr.append(title(groups[i], "row"));
    line.forEach((c, j) => {
      const b = document.createElement("button");
      b.type = "button";
      b.className = c.verdict;
      b.dataset.at = `${i} ${j}`;
      b.tabIndex = b.dataset.at === (focused || "0 0") ? 0 : -1;
      b.textContent = signs[c.verdict] + (c.open && groups.length <= 12 ? " " + c.open : "");
      b.title = `${label(groups[i])} to ${label(groups[j])}: ${wordsOf(c)}`;
      b.setAttribute("aria-label", b.title);
      tr.insertCell().append(b);
    });
  });
  table.replaceChildren(table.caption, head, body);
  if (focused) table.querySelector(`[data-at="${focused}"]`)?.focus();
  $("names").replaceChildren(...groups.map(g => Object.assign(document.createElement("option"), { value: g.example })));
  if (opened) openPair(...opened, false); // its rules may be others now
}

let opened = null;

async function openPair(from, to, focus = true) {
  opened = [from, to];
  const body = $("judged");
  try {
    const p = await (await ask(`ui/pair?from=${encodeURIComponent(from)}&to=${encodeURIComponent(to)}`)).json();
    $("pair").hidden = false;
    $("pair-title").textContent = `From ${from} to ${to}: ${{ all: "everything passes", some: "some traffic passes", none: "nothing passes", apart: "no address of one family", alone: "itself, which no rule judges" }[p.verdict]}`;
    fill(body, (p.judged || []).map((j, i) => [j, i]), x => x[1], ([j]) => [j.family, j.traffic, { text: j.allowed ? "✓ allowed" : "✕ denied", cls: j.allowed ? "ok" : "bad" },
      `${j.outbound.allowed ? "✓" : "✕"} ${j.outbound.rule}`, j.outbound.allowed ? `${j.inbound.allowed ? "✓" : "✕"} ${j.inbound.rule}` : "does not get there"]);
  } catch (e) {
    $("pair").hidden = false;
    $("pair-title").textContent = e.message;
    fill(body, [], x => x, x => x);
  }
  if (focus) $("pair-title").focus();
}

// --- events

const log = $("log"), mostEvents = 200;
let paused = false, waiting = [];

function note(text) {
  const li = document.createElement("li"), t = document.createElement("time");
  t.dateTime = new Date(now()).toISOString();
  t.textContent = clock(now());
  li.append(t, text);
  if (paused) waiting = [...waiting.slice(-mostEvents + 1), li];
  else show(li);
}

function show(li) {
  log.prepend(li);
  while (log.children.length > mostEvents) log.lastElementChild.remove();
}

// --- what people do

$("node-filter").addEventListener("input", drawNodes);
$("endpoint-filter").addEventListener("input", drawEndpoints);
$("detail-close").addEventListener("click", () => choose(""));
document.addEventListener("click", e => {
  const name = e.target.closest("[data-choose]")?.dataset.choose || e.target.closest("#map-nodes .node:not(.peer)")?.dataset.name;
  if (name) choose(name);
  const at = e.target.closest("#matrix button")?.dataset.at;
  if (at) {
    const [i, j] = at.split(" ").map(Number), { groups } = matrix;
    openPair(groups[i].example, i === j ? groups[j].other || groups[j].example : groups[j].example);
  }
});
$("matrix").addEventListener("keydown", e => {
  const at = e.target.dataset.at?.split(" ").map(Number), step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[e.key];
  const to = at && step && $("matrix").querySelector(`[data-at="${at[0] + step[0]} ${at[1] + step[1]}"]`);
  if (!to) return;
  e.preventDefault();
  e.target.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
});
for (const r of document.querySelectorAll("[name=by]")) r.addEventListener("change", matrixSoon);
$("pair-form").addEventListener("submit", e => {
  e.preventDefault();
  openPair($("pair-from").value.trim(), $("pair-to").value.trim());
});
$("say").addEventListener("change", e => { log.ariaLive = e.target.checked ? "polite" : "off"; });
$("pause").addEventListener("click", e => {
  paused = !paused;
  e.target.setAttribute("aria-pressed", paused);
  if (!paused) { waiting.forEach(show); waiting = []; }
});
const themes = ["system", "light", "dark"];
function theme(t) {
  if (t === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = t;
  $("theme").textContent = "Colours: " + t;
  $("theme").ariaLabel = "Colours: " + t;
}
theme(themes.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "system");
$("theme").addEventListener("click", () => {
  const t = themes[(themes.indexOf(document.documentElement.dataset.theme || "system") + 1) % 3];
  localStorage.setItem("theme", t);
  theme(t);
});
addEventListener("resize", () => { all = true; stale(); });
document.addEventListener("visibilitychange", stale);
setInterval(() => { all = true; parts.add("nodes"); stale(); }, 30000); // what only time changes

follow();
