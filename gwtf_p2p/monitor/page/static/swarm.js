// The picture of the swarm: stages as columns (rows on a phone), peers as shapes, flows as lines. Shapes are kept between
// changes, so that the keyboard's place and a reader's eye are not lost.

import { drawn, duration, count, rate, stateOf, placeOf, short, PATHS } from "./words.js";

const FLOWS_DRAWN_ALONE = 24;
const HOPS_DRAWN = 3000;
const TALL_BELOW = 640;
const LABELS = 218;
export const SLOW = 1.5;
const LABEL_ROW = 19;
const MOST_LARGER = 1.5;
const GLYPHS = { JOINING: "…", SYNCING: "…", DRAINING: "↓", GONE: "×" };

export class Swarm {
  constructor(holder, onPeer) {
    this.holder = holder;
    this.onPeer = onPeer;
    this.nodes = new Map();
    this.focused = null;
    this.svg = drawn("svg", { role: "presentation" });
    this.columns = drawn("g");
    this.lines = drawn("g");
    this.shapes = drawn("g");
    this.titles = drawn("g");
    this.svg.append(this.columns, this.lines, this.titles, this.shapes);
    holder.replaceChildren(this.svg);
    holder.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.document && this.draw(this.document)).observe(holder);
  }

  draw(document, first = false) {
    this.document = document;
    const width = this.holder.clientWidth;
    if (!width) return;
    const places = (this.places = this.layout(document, width));
    this.svg.setAttribute("viewBox", `0 0 ${places.width} ${places.height}`);
    this.columns.replaceChildren(...places.columns.map(({ x, y, w, h }) => drawn("rect", { x, y, width: w, height: h, rx: 6, class: "column" })));
    this.titles.replaceChildren(...places.columns.map((column) => this.title(column)));
    if (places.margin) {
      const heading = drawn("text", { x: places.edge + 14, y: 16, class: "title" });
      heading.textContent = "Planned / measured, back to";
      this.titles.append(heading);
    }
    this.drawNodes(places, first);
    this.drawFlows(document, places);
  }

  // ---- where things are

  layout(document, width) {
    const tall = width < TALL_BELOW;
    const alone = document.flows.length <= FLOWS_DRAWN_ALONE;
    const planned = document.flows.filter((flow) => flow.microbatches).length;
    const peers = [...document.peers, ...document.departed.map((gone) => ({ ...gone, n: `gone ${gone.peer}`, state: "GONE", role: gone.stage ? "stage" : "data" }))]
      .filter((peer, index, all) => peer.state !== "GONE" || !all.some((other) => other.peer === peer.peer && other.state !== "GONE"));
    const stages = Array.from({ length: document.stages + 1 }, (_, stage) => peers.filter((peer) => peer.stage === stage));
    const most = Math.max(1, ...stages.map((column) => column.length));
    const margin = tall || !alone || !planned ? 0 : LABELS;
    const along = tall ? Math.max(104, Math.min(150, 40 + 26 * Math.ceil(most / 6))) : (width - margin) / stages.length;
    const across = tall ? width : Math.max(150, Math.min(540, 62 * most), alone ? LABEL_ROW * planned + 10 : 0);
    const fastest = Math.max(1e-9, ...document.peers.map((peer) => peer.microbatches_per_s || 0));
    const at = new Map();
    const room = tall ? along - 40 : along * 0.62;
    const deep = across - (tall ? 8 : 30);
    const crowded = Math.min(...stages.map((column) => cellFor(column.length, room, deep)));
    const columns = stages.map((column, stage) => {
      // One size for all, but for a little: a stage with few peers is not more important than one with many.
      const cell = Math.min(MOST_LARGER * crowded, cellFor(column.length, room, deep));
      const perLine = Math.max(1, Math.floor(deep / cell));
      const lines = Math.ceil(column.length / perLine);
      const gap = Math.min(deep / Math.min(perLine, Math.max(1, column.length)), (tall ? 2 : 1.6) * cell);
      column.forEach((peer, index) => {
        const line = Math.floor(index / perLine);
        const inLine = Math.min(perLine, column.length - line * perLine);
        const place = (index % perLine) - (inLine - 1) / 2;
        const a = stage * along + along / 2 + (line - (lines - 1) / 2) * cell + (tall ? 6 : 0);
        const b = across / 2 + place * gap + (tall ? 0 : 13);
        const share = peer.microbatches_per_s ? Math.sqrt(peer.microbatches_per_s / fastest) : 0.5;
        const size = Math.max(2.5, Math.min(19, cell * 0.36) * Math.max(0.45, share));
        at.set(peer.n, { peer, x: tall ? b : a, y: tall ? a : b, r: size, label: cell >= 44 });
      });
      const title = stage ? `Stage ${stage}` : "Data";
      const online = column.filter((peer) => peer.state === "ONLINE" && !peer.is_silent).length;
      return { title, online, x: tall ? 0 : stage * along + 4, y: tall ? stage * along + 2 : 0, w: tall ? width : along - 8, h: tall ? along - 4 : across + 26, tall };
    });
    return { tall, alone, margin, at, columns, width, height: tall ? along * stages.length + 24 : across + 28, edge: tall ? along * stages.length : along * stages.length, across };
  }

  title({ title, online, x, y, w, tall }) {
    const text = `${title}: ${online} online`;
    const label = drawn("text", { x: tall ? 8 : x + w / 2, y: y + 16, class: tall ? "title" : "title middle" });
    label.textContent = w > 135 || tall ? text : w > 80 ? `${title}: ${online}` : w > 64 ? title : title.replace("Stage ", "");
    return label;
  }

  // ---- peers

  drawNodes({ at }, first) {
    for (const [n, node] of this.nodes) {
      if (!at.has(n)) {
        node.group.remove();
        this.nodes.delete(n);
      }
    }
    for (const [n, place] of at) {
      let node = this.nodes.get(n);
      if (!node) {
        node = this.node(place.peer);
        this.nodes.set(n, node);
        this.shapes.append(node.group);
        if (!first && !this.first) node.group.classList.add("fresh");
      }
      this.update(node, place);
    }
    this.first = false;
    if (!this.nodes.has(this.focused)) this.focused = this.nodes.keys().next().value ?? null;
    for (const [n, node] of this.nodes) node.group.setAttribute("tabindex", n === this.focused ? "0" : "-1");
  }

  node(peer) {
    const shape = drawn(peer.role === "data" ? "rect" : "circle", { class: "shape" });
    const ring = drawn(peer.role === "data" ? "rect" : "circle", { class: "ring" });
    const glyph = drawn("text", { class: "glyph", "aria-hidden": "true" });
    const label = drawn("text", { class: "middle", "aria-hidden": "true" });
    const title = drawn("title");
    const group = drawn("g", { role: "button" }, title, ring, shape, glyph, label);
    group.addEventListener("click", () => this.onPeer(peer.peer));
    group.addEventListener("focus", () => (this.focused = peer.n));
    return { group, shape, ring, glyph, label, title, before: null };
  }

  update(node, { peer, x, y, r, label }) {
    const kind = peer.is_silent ? "silent" : peer.state;
    const fresh = node.before !== null && node.before !== kind;
    node.before = kind;
    const kept = node.group.classList.contains("fresh") && !fresh;
    node.group.setAttribute("class", `node ${kind}${peer.is_silent ? " silent" : ""}${fresh || kept ? " fresh" : ""}`);
    node.group.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
    for (const shape of [node.shape, node.ring]) {
      if (shape.tagName === "circle") shape.setAttribute("r", r.toFixed(1));
      else for (const [key, value] of [["x", -r], ["y", -r], ["width", 2 * r], ["height", 2 * r], ["rx", 2]]) shape.setAttribute(key, value.toFixed(1));
    }
    node.glyph.textContent = r > 6 ? (peer.is_silent ? "×" : GLYPHS[peer.state] || "") : "";
    node.glyph.setAttribute("y", 4);
    node.label.textContent = label ? short(peer.name) : "";
    node.label.setAttribute("y", (r + 13).toFixed(1));
    const words = [`${peer.name}, ${placeOf(peer)}, ${stateOf(peer)}`];
    if (peer.state !== "GONE") words.push(`${peer.occupancy} of ${peer.capacity} microbatches`, `${rate(peer.microbatches_per_s)} microbatches/s`, PATHS[peer.path] || peer.path);
    if (peer.behind) words.push(`${peer.behind} iterations behind`);
    const said = words.join(", ");
    if (node.title.textContent !== said) {
      node.title.textContent = said;
      node.group.setAttribute("aria-label", said);
    }
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const place = this.places?.at.get(this.focused);
    if (!place) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.onPeer(place.peer.peer);
      return;
    }
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    let best = null;
    for (const [n, other] of this.places.at) {
      const ahead = (other.x - place.x) * move[0] + (other.y - place.y) * move[1];
      const aside = Math.abs((other.x - place.x) * move[1]) + Math.abs((other.y - place.y) * move[0]);
      if (ahead > 1 && (best === null || ahead + 2 * aside < best.far)) best = { n, far: ahead + 2 * aside };
    }
    if (best === null) return;
    this.nodes.get(this.focused).group.setAttribute("tabindex", "-1");
    this.focused = best.n;
    const group = this.nodes.get(best.n).group;
    group.setAttribute("tabindex", "0");
    group.focus();
  }

  // ---- flows

  drawFlows(document, places) {
    const hops = new Map(document.hops.map((hop) => [hop.id, hop]));
    this.groups = new Map();
    if (!places.alone) {
      const busiest = [...document.hops].sort((one, other) => other.microbatches - one.microbatches).slice(0, HOPS_DRAWN);
      const lines = busiest.filter((hop) => this.forward(hop)).map((hop) => this.hop(hop, places, 0, "")).filter(Boolean);
      this.lines.replaceChildren(drawn("g", { class: "flow many" }, ...lines));
      return;
    }
    const planned = document.flows.filter((flow) => flow.microbatches);
    const others = document.flows.filter((flow) => !flow.microbatches);
    const groups = [...others, ...planned].map((flow) => this.flow(flow, planned.indexOf(flow), planned.length, hops, places));
    this.lines.replaceChildren(...groups);
  }

  forward(hop) {
    const from = this.places.at.get(hop.from);
    const to = this.places.at.get(hop.to);
    return from && to && to.peer.stage === from.peer.stage + 1;
  }

  flow(flow, index, flows, hops, places) {
    const slow = flow.planned_s && flow.measured_s > SLOW * flow.planned_s;
    const kind = flow.microbatches ? (slow ? "slow" : "") : "unplanned";
    const offset = index < 0 ? 0 : Math.max(-8, Math.min(8, (index - (flows - 1) / 2) * 2.6));
    const group = drawn("g", { class: "flow" });
    for (let k = 0; k + 1 < flow.route.length; k++) {
      const hop = hops.get(`${flow.route[k]}>${flow.route[k + 1]}`);
      const line = hop && this.hop({ ...hop, microbatches: flow.microbatches }, places, offset, kind);
      if (line) group.append(line);
    }
    const last = places.at.get(flow.route.at(-1));
    const back = hops.get(`${flow.route.at(-1)}>${flow.route[0]}`);
    if (last && back && index >= 0) group.append(...this.end(flow, back, last, index, flows, offset, kind, places));
    this.groups.set(flow.id, group);
    return group;
  }

  end(flow, back, last, index, flows, offset, kind, places) {
    if (places.tall) {
      const y = places.edge + 6;
      return [this.line(last.x + offset, last.y, last.x + offset, y, true, back, flow.microbatches, kind)];
    }
    const y = 24 + ((index + 0.5) * (places.across - 10)) / flows;
    const x = places.edge + 8;
    const words = `${flow.microbatches} ×  ${flow.planned_s ? duration(flow.planned_s) : "–"} / ${flow.measured_s ? duration(flow.measured_s) : "–"}`;
    const text = drawn("text", { x: x + 6, y: y + 4 });
    text.textContent = `${words} → ${short(places.at.get(flow.route[0])?.peer.name ?? "gone")}`;
    return [this.line(last.x, last.y + offset, x, y, false, back, flow.microbatches, kind), text];
  }

  hop(hop, places, offset, kind) {
    const from = places.at.get(hop.from);
    const to = places.at.get(hop.to);
    if (!from || !to) return null;
    const [dx, dy] = places.tall ? [offset, 0] : [0, offset];
    return this.line(from.x + dx, from.y + dy, to.x + dx, to.y + dy, places.tall, hop, hop.microbatches, kind, `${from.peer.name} to ${to.peer.name}: `);
  }

  line(x1, y1, x2, y2, tall, hop, microbatches, kind, who = "") {
    const [mx, my] = [(x1 + x2) / 2, (y1 + y2) / 2];
    const d = tall ? `M${x1} ${y1}C${x1} ${my} ${x2} ${my} ${x2} ${y2}` : `M${x1} ${y1}C${mx} ${y1} ${mx} ${y2} ${x2} ${y2}`;
    const line = drawn("path", { d, class: `hop ${hop.path} ${kind}`, "stroke-width": microbatches ? Math.min(6, 1.2 + 0.6 * microbatches) : 1 });
    const measured = hop.round_trip_s === null ? "not measured" : `round trip ${duration(hop.round_trip_s)}, ${count(hop.bytes_per_s)}B/s (${hop.measured_by})`;
    const title = drawn("title");
    title.textContent = `${who}${microbatches} microbatches, path ${PATHS[hop.path] || hop.path}, ${measured}`;
    line.append(title);
    return line;
  }

  // Lifts one flow out of the others; null: none. Where there are too many to be drawn alone, it is drawn over them.
  light(id) {
    this.over?.remove();
    this.over = null;
    const flow = this.document.flows.find((other) => other.id === id);
    if (flow && !this.places.alone) {
      const hops = new Map(this.document.hops.map((hop) => [hop.id, hop]));
      this.over = this.flow(flow, -1, 0, hops, this.places);
      this.over.classList.add("lit");
      this.lines.append(this.over);
    }
    this.lines.classList.toggle("dimmed", Boolean(flow));
    for (const [key, group] of this.groups) group.classList.toggle("lit", key === id);
  }
}

function cellFor(peers, room, across) {
  let cell = 58;
  while (cell > 5 && Math.ceil(peers / Math.max(1, Math.floor(across / cell))) * cell > room) cell *= 0.94;
  return cell;
}

const MARKS = [
  ["ONLINE", "", false, "stage peer online"], ["ONLINE", "", true, "data peer online"], ["SYNCING", "…", false, "joining or fetching"],
  ["DRAINING", "↓", false, "leaving"], ["silent", "×", false, "not answering"], ["GONE", "×", false, "gone"],
];
const LINES = [
  ["public", "public path"], ["punched", "punched through NATs"], ["relayed", "through a circuit relay"],
  ["slow", "slower than planned"], ["unplanned", "used, not planned"],
];

// What of shapes and lines the picture shows now, each with a sample of it.
export function legend(document) {
  const states = new Set(document.peers.map((peer) => (peer.is_silent ? "silent" : peer.state === "JOINING" ? "SYNCING" : peer.state)));
  if (document.departed.length) states.add("GONE");
  const kinds = new Set(document.hops.map((hop) => hop.path));
  if (document.flows.some((flow) => flow.planned_s && flow.measured_s > SLOW * flow.planned_s)) kinds.add("slow");
  if (document.flows.some((flow) => !flow.microbatches)) kinds.add("unplanned");
  const marks = MARKS.filter(([kind]) => states.has(kind)).map(([kind, glyph, square, words]) => [mark(kind, glyph, square), words]);
  return [...marks, ...LINES.filter(([kind]) => kinds.has(kind)).map(([kind, words]) => [line(kind), words])];
}

function mark(kind, glyph, square) {
  const shape = square ? drawn("rect", { x: 5, y: 1, width: 16, height: 16, rx: 2, class: "shape" }) : drawn("circle", { cx: 13, cy: 9, r: 8, class: "shape" });
  const text = drawn("text", { x: 13, y: 13, class: "glyph" });
  text.textContent = glyph;
  return drawn("svg", { viewBox: "0 0 28 18", class: kind, "aria-hidden": "true" }, shape, text);
}

const line = (kind) => drawn("svg", { viewBox: "0 0 28 18", "aria-hidden": "true" }, drawn("path", { d: "M1 9H27", class: `hop ${kind}`, "stroke-width": 3 }));
