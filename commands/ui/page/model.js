// What the cluster is, as the watch tells it, and what that means: states of nodes,
// sessions, fill of blocks, events in words. It draws nothing.

export const objects = { Node: new Map(), Endpoint: new Map(), Profile: new Map(), Policy: new Map(), Tier: new Map(), NetworkSet: new Map(), Network: new Map(), Pool: new Map(), Block: new Map(), Report: new Map() };
export const kinds = Object.keys(objects).map(k => (k.toLowerCase() + "s").replace(/ys$/, "ies"));
export const endpointsOf = new Map(); // node to names of its endpoints
const addresses = new Map(); // address to node
let silence = 1260, skew = 0; // seconds, ms that the server is ahead

export function setRun(run) {
  silence = run.silence;
  skew = Date.parse(run.now) - Date.now();
}

export const now = () => Date.now() + skew;

// put takes an object, remove takes it away; both return what is different, in words. Of
// changes in a row an older one does nothing; anew, where all is told again, the store may
// be an older one.
export function put(o, anew) {
  const all = objects[o.kind];
  if (!all) return [];
  const name = o.metadata.name, old = all.get(name);
  if (old && (anew ? old.metadata.revision === o.metadata.revision : old.metadata.revision >= o.metadata.revision)) return [];
  all.set(name, o);
  if (o.kind === "Endpoint") {
    if (old && old.spec.node !== o.spec.node) endpointsOf.get(old.spec.node)?.delete(name);
    if (!endpointsOf.has(o.spec.node)) endpointsOf.set(o.spec.node, new Set());
    endpointsOf.get(o.spec.node).add(name);
    o.text = [name, ...(o.spec.addresses || []), o.spec.network, ...(o.spec.profiles || [])].join(" ").toLowerCase();
  }
  if (o.kind === "Node") place(old, o);
  return told(old, o);
}

export function remove(kind, name) {
  const old = objects[kind]?.get(name);
  if (!old) return [];
  objects[kind].delete(name);
  if (kind === "Endpoint") endpointsOf.get(old.spec.node)?.delete(name);
  if (kind === "Node") place(old, null);
  return kind === "Report" ? [] : [`${kind.toLowerCase()} ${shortName(old)} is gone`];
}

function place(old, now) {
  for (const a of old?.spec.addresses || []) addresses.delete(a.split("/")[0]);
  for (const a of now?.spec.addresses || []) addresses.set(a.split("/")[0], now.metadata.name);
}

const shortName = o => o.kind === "Pool" || o.kind === "Block" ? o.spec.cidr : o.metadata.name;

// told says what changed from old (null: nothing was there) to o.
function told(old, o) {
  const name = shortName(o), what = o.kind.toLowerCase();
  switch (o.kind) {
  case "Report": return toldReport(old, o);
  case "Block": {
    const before = old ? used(old) : 0, after = used(o);
    if (!old) return [`block ${name} was claimed by ${o.spec.affinity}`];
    return before === after ? [] : [`block ${name} of ${o.spec.affinity}: ${after} of ${size(o)} addresses in use, ${before} before`];
  }
  case "Endpoint":
    if (!old) return [`endpoint ${name} is there: ${(o.spec.addresses || []).join(", ")}`];
  }
  return [old ? `${what} ${name} was changed` : `${what} ${name} is there`];
}

function toldReport(old, o) {
  const [node, role] = o.metadata.name.split("/"), list = [];
  if (!old) return [`${role} of ${node} reports`];
  const before = new Map((old.status.sessions || []).map(s => [peerOf(s), s]));
  for (const s of o.status.sessions || []) {
    const b = before.get(peerOf(s));
    before.delete(peerOf(s));
    if (b && b.state === s.state) continue;
    const end = nodeAt(s.peer) || peerOf(s);
    list.push(s.state === "Established" ? `session ${node} to ${end} is up` : `session ${node} to ${end} is not up: ${s.state}${s.reason ? ", " + s.reason : ""}`);
  }
  for (const s of before.values()) list.push(`session ${node} to ${nodeAt(s.peer) || peerOf(s)} is gone`);
  const had = new Set(old.status.problems || []), has = new Set(o.status.problems || []);
  for (const p of has) if (!had.has(p)) list.push(`problem on ${node}: ${p}`);
  for (const p of had) if (!has.has(p)) list.push(`no more on ${node}: ${p}`);
  if (old.status.started && o.status.started !== old.status.started) list.push(`${role} of ${node} started`);
  return list;
}

export const peerOf = s => s.interface || s.peer;
export const nodeAt = a => addresses.get(a);
export const used = b => (b.spec.allocations || []).length;
export const size = b => { const [a, bits] = b.spec.cidr.split("/"); return 2 ** ((a.includes(":") ? 128 : 32) - bits); };

// rackOf is where a node stands, by its label rack or else zone; "": none says.
export function rackOf(n) {
  const labels = n.metadata.labels || {};
  for (const want of ["rack", "zone"]) {
    for (const k in labels) if (k.toLowerCase() === want || k.toLowerCase().endsWith("." + want)) return labels[k];
  }
  return "";
}

export const sessionsOf = node => objects.Report.get(node + "/speaker")?.status.sessions || [];
export const isDown = s => s.state !== "Established" && !s.off;

// stateOf is how a node is, as netctl status --all has it: class, sign, words.
export function stateOf(n) {
  const name = n.metadata.name, agent = objects.Report.get(name + "/agent"), speaker = objects.Report.get(name + "/speaker");
  const last = agent || (speaker?.status.bare ? speaker : null);
  if (!last) return ["dead", "?", "never reported"];
  if (now() - Date.parse(last.status.seen) > silence * 1000) return ["dead", "?", "silent"];
  const sessions = sessionsOf(name), down = sessions.filter(isDown).length;
  if (down) return ["bad", "✕", down === 1 ? "1 session down" : `${down} sessions down`];
  if (last.status.behind) return ["bad", "✕", "behind"];
  const problems = last.status.problems?.length || 0;
  if (problems) return ["warn", "!", problems === 1 ? "1 problem" : `${problems} problems`];
  if (n.spec.drain) return ["warn", "!", "drained"];
  return ["ok", "✓", "well"];
}

export const seenOf = name => objects.Report.get(name + "/agent")?.status.seen || objects.Report.get(name + "/speaker")?.status.seen;

// ago is how long ago a time was, in words.
export function ago(t) {
  if (!t || t.startsWith("0001")) return "never";
  const s = Math.max(0, Math.round((now() - Date.parse(t)) / 1000));
  return s < 90 ? `${s} s ago` : s < 5400 ? `${Math.round(s / 60)} min ago` : s < 172800 ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} d ago`;
}

// within says whether a block's CIDR is in a pool's.
export function within(block, pool) {
  const [b, bl] = binary(block), [p, pl] = binary(pool);
  return b.length === p.length && bl >= pl && b.startsWith(p.slice(0, pl));
}

const binaries = new Map();
function binary(cidr) {
  let v = binaries.get(cidr);
  if (!v) {
    const [a, bits] = cidr.split("/");
    v = [bitsOf(a), +bits];
    if (binaries.size > 20000) binaries.clear();
    binaries.set(cidr, v);
  }
  return v;
}

function bitsOf(a) {
  if (!a.includes(":")) return a.split(".").map(x => (+x).toString(2).padStart(8, "0")).join("");
  const [head, tail] = a.split("::"), words = s => s ? s.split(":") : [];
  const h = words(head), t = words(tail);
  return [...h, ...Array(8 - h.length - t.length).fill("0"), ...t].map(x => parseInt(x, 16).toString(2).padStart(16, "0")).join("");
}
