// The map: racks as frames, nodes as boxes with their endpoints as small squares, sessions
// as lines. Boxes are made when nodes come and go; else only what changed is touched.
import { objects, endpointsOf, rackOf, stateOf, sessionsOf, isDown, nodeAt, peerOf } from "./model.js";

const NS = "http://www.w3.org/2000/svg";
const make = (tag, at, text) => {
  const e = document.createElementNS(NS, tag);
  for (const k in at) e.setAttribute(k, at[k]);
  if (text !== undefined) e.textContent = text;
  return e;
};
const set = (e, k, v) => { if (e.getAttribute(k) !== v) e.setAttribute(k, v); };
const say = (e, text) => { if (e.textContent !== text) e.textContent = text; };
const $ = id => document.getElementById(id);

const maxLines = 600; // of sessions; of more only those that are down, or of the chosen node
const boxes = new Map(); // node to its box
let shape = ""; // what the boxes were made of
let cell;

// box sizes by how many nodes there are: width, height, how many letters of a name.
const cellFor = n => n <= 12 ? { w: 210, h: 92, letters: 24, gap: 46 } : n <= 80 ? { w: 134, h: 66, letters: 16, gap: 14 } : { w: 64, h: 34, letters: 9, gap: 4, tiny: true };

const short = (s, n) => s.length > n ? s.slice(0, n - 1) + "…" : s;
const order = new Intl.Collator("en", { numeric: true }).compare;

// outside are the peers that are no nodes, by what they are called.
function outside() {
  const found = new Set();
  for (const name of objects.Node.keys()) for (const s of sessionsOf(name)) if (!nodeAt(s.peer)) found.add(peerOf(s));
  return [...found].sort(order).slice(0, 40);
}

// layout makes all boxes anew, if nodes, racks or peers outside are others.
function layout() {
  const racks = new Map();
  for (const n of objects.Node.values()) {
    const r = rackOf(n);
    if (!racks.has(r)) racks.set(r, []);
    racks.get(r).push(n.metadata.name);
  }
  const peers = outside(), width = Math.max(640, Math.round($("map-frame").clientWidth / 80) * 80);
  const list = [...racks].sort((a, b) => order(a[0], b[0])).map(([r, names]) => [r ? "rack " + r : racks.size > 1 ? "no rack" : "", names.sort(order), false]);
  if (peers.length) list.unshift(["outside", peers, true]);
  const want = width + JSON.stringify(list);
  if (want === shape) return false;
  shape = want;
  cell = cellFor(objects.Node.size + peers.length);
  boxes.clear();
  const frames = document.createDocumentFragment(), nodes = document.createDocumentFragment();
  const { w, h, gap } = cell, pad = 10, head = 22;
  let x = 0, y = 0, row = 0;
  for (const [title, names, isPeers] of list) {
    const most = Math.max(1, Math.floor((width - 2 * pad + gap) / (w + gap)));
    const columns = Math.min(most, names.length <= 4 || list.length === 1 ? names.length : Math.ceil(Math.sqrt(names.length * 1.4)));
    const rows = Math.ceil(names.length / columns);
    const fw = columns * (w + gap) - gap + 2 * pad, fh = head + rows * (h + gap) - gap + pad;
    if (x > 0 && x + fw > width) { x = 0; y += row + 16; row = 0; }
    const f = make("g", { class: "rack" });
    f.append(make("rect", { x: x + 1, y: y + 1, width: fw - 2, height: fh - 2, rx: 6 }), make("text", { x: x + pad, y: y + 16 }, title));
    frames.append(f);
    names.forEach((name, i) => {
      const bx = x + pad + (i % columns) * (w + gap), by = y + head + Math.floor(i / columns) * (h + gap);
      nodes.append(box(name, bx, by, isPeers));
    });
    x += fw + 16;
    row = Math.max(row, fh);
  }
  $("map-racks").replaceChildren(frames);
  $("map-nodes").replaceChildren(nodes);
  $("map-svg").setAttribute("viewBox", `0 0 ${width} ${Math.max(y + row, 40) + 2}`);
  $("map-svg").classList.toggle("tiny", !!cell.tiny);
  return true;
}

function box(name, x, y, isPeer) {
  const g = make("g", { class: "node", transform: `translate(${x} ${y})`, "data-name": name });
  const b = { g, x: x + cell.w / 2, y: y + cell.h / 2, peer: isPeer, text: make("text", { x: 5, y: cell.tiny ? 12 : 17 }), count: make("text", { x: 5, y: cell.tiny ? 23 : 33 }), path: make("path", {}), title: make("title", {}) };
  g.append(make("rect", { width: cell.w, height: cell.h, rx: 4 }), b.text, b.count, b.path, b.title);
  if (isPeer) {
    g.setAttribute("class", "node peer");
    b.text.textContent = short(name, cell.letters);
    b.title.textContent = name + ", no node";
  }
  boxes.set(name, b);
  return g;
}

// squares is the outline of n small squares in what is free of a box, and how many found room.
function squares(n) {
  const top = cell.tiny ? 26 : 39, side = cell.tiny ? 2 : 5, step = side + (cell.tiny ? 1 : 2);
  const columns = Math.floor((cell.w - 10) / step), rows = Math.max(1, Math.floor((cell.h - top - 2) / step));
  let d = "";
  for (let i = 0; i < Math.min(n, columns * rows); i++) d += `M${5 + (i % columns) * step} ${top + Math.floor(i / columns) * step}h${side}v${side}h-${side}z`;
  return d;
}

function paint(n, chosen) {
  const name = n.metadata.name, b = boxes.get(name);
  if (!b) return;
  const [cls, sign, words] = stateOf(n), count = endpointsOf.get(name)?.size || 0;
  set(b.g, "class", `node ${cls}${name === chosen ? " chosen" : ""}`);
  say(b.text, `${sign} ${short(name, cell.letters)}`);
  say(b.count, cell.tiny ? `${count}` : `${count} endpoint${count === 1 ? "" : "s"}${cls === "ok" ? "" : ", " + short(words, 18)}`);
  say(b.title, `${name}: ${words}, ${count} endpoints`);
  if (b.had !== count) {
    b.had = count;
    b.path.setAttribute("d", squares(count));
  }
}

// lines draws the sessions, each once though both ends tell of it, and counts them.
function lines(chosen) {
  const found = new Map();
  for (const name of objects.Node.keys()) {
    for (const s of sessionsOf(name)) {
      const end = nodeAt(s.peer) || peerOf(s), key = name < end ? name + " " + end : end + " " + name;
      const had = found.get(key);
      if (!had) found.set(key, [name, end, isDown(s), s.off]);
      else had[2] ||= isDown(s);
    }
  }
  let up = "", down = "", bad = 0;
  const few = found.size <= maxLines;
  for (const [a, b, dead, off] of found.values()) {
    bad += dead ? 1 : 0;
    const from = boxes.get(a), to = boxes.get(b);
    if (!from || !to || off && !dead || !few && !dead && a !== chosen && b !== chosen) continue;
    const d = curve(from, to);
    if (dead) down += d; else up += d;
  }
  set($("map-up"), "d", up);
  set($("map-down"), "d", down);
  set($("map-down"), "class", bad > 60 ? "many" : "");
  return { all: found.size, bad, few };
}

// curve goes from one box to the other, bent where they are in one line and others between.
function curve(a, b) {
  const bend = Math.abs(a.y - b.y) < 2 && Math.abs(a.x - b.x) > cell.w + cell.gap + 2;
  return bend ? `M${a.x} ${a.y}Q${(a.x + b.x) / 2} ${a.y - cell.h * .9} ${b.x} ${b.y}` : `M${a.x} ${a.y}L${b.x} ${b.y}`;
}

// draw brings the map up to date: of the nodes named in dirty, or of all.
export function draw(dirty, chosen, sessionsChanged) {
  const anew = layout();
  for (const n of anew || !dirty ? objects.Node.values() : [...dirty].map(d => objects.Node.get(d)).filter(n => n)) paint(n, chosen);
  if (!anew && !sessionsChanged) return;
  const count = lines(chosen);
  say($("map-name"), `${objects.Node.size} nodes, ${count.all} sessions, ${count.bad} of them down; the tables below say the same`);
  say($("map-note"), count.few ? "" : `There are ${count.all} sessions: only those that are down are drawn, and those of the node that is chosen.`);
  return count;
}
