// The page of one run. What the server tells goes to the parts that show it.

import { Charts } from "./charts.js";
import { Drawer } from "./drawer.js";
import { Follower } from "./follow.js";
import { Plan } from "./plan.js";
import { SLOW, Swarm, legend } from "./swarm.js";
import { clock, count, duration, element, loss, placeOf, put, rate, stateOf, table, PATHS } from "./words.js";

const BOARD_MS = 15000;
const PLAN_MS = 10000;
const PEER_ROWS = 300;
const FLOW_ROWS = 100;
const EVENT_ROWS = 60;

const base = `../api/v1/runs/${document.body.dataset.run}`;
const byId = (id) => document.getElementById(id);
let now = null;

const drawer = new Drawer(base, (peer) => now?.peers.find((row) => row.peer === peer));
const swarm = new Swarm(byId("swarm"), (peer) => drawer.open(peer));
const charts = new Charts(base, byId("loss-chart"), byId("speed-chart"));
const plan = new Plan(base, byId("plan"), byId("measured"), byId("plan-legend"));
swarm.first = true;

function show(document_, { whole, changes, samples }) {
  now = document_;
  figures();
  findings();
  swarm.draw(now, whole);
  marks();
  flows();
  if (byId("peers-details").open) peers();
  events();
  if (whole) charts.load();
  else charts.add(samples);
  if (whole || changes.length) {
    board();
    plan.load();
  }
  if (changes.length) put("spoken", changes.map((change) => change.text).slice(-3).join(". "));
}

function figures() {
  const waits = now.findings.some((finding) => finding.level === "alert");
  const total = now.total_iterations;
  put("f-iterations", total ? `${now.iterations} of ${total}` : String(now.iterations));
  put("f-loss", now.loss === null ? "not yet" : loss(now.loss));
  put("f-held", loss(now.held_out_loss));
  put("f-tokens", count(now.iterations * now.tokens_per_iteration));
  put("f-speed", waits ? "it waits" : now.tokens_per_second ? count(now.tokens_per_second) : "not yet");
  put("f-left", waits ? "training waits" : now.seconds_left === null ? (total ? "not known yet" : "no end is set") : now.seconds_left ? duration(now.seconds_left) : "done");
  put("f-peers", `${now.peers_online} of ${now.peers_seen}`);
  if (total) byId("progress").value = now.iterations;
  document.title = `${now.findings[0].level === "alert" ? "▲ " : ""}${now.run_id} · gwtf`;
}

function findings() {
  const told = now.trouble ? [...now.findings, { level: "notice", text: `This monitor: ${now.trouble}.` }] : now.findings;
  const list = byId("findings");
  const said = told.map((finding) => finding.level + finding.text).join();
  if (list.dataset.said === said) return;
  list.dataset.said = said;
  list.replaceChildren(...told.map((finding) => element("li", { class: `finding ${finding.level}` }, finding.text)));
}

function marks() {
  const list = byId("legend");
  const shown = legend(now);
  const said = shown.map(([, words]) => words).join();
  if (list.dataset.said === said) return;
  list.dataset.said = said;
  list.replaceChildren(...shown.map(([picture, words]) => element("li", {}, picture, words)));
}

function flows() {
  put("flows-reason", `The plan: ${now.flows_reason}.${now.flows.length > FLOW_ROWS ? ` The first ${FLOW_ROWS} of ${now.flows.length} routes.` : ""}`);
  const names = new Map(now.peers.map((peer) => [peer.n, peer.name]));
  const hops = new Map(now.hops.map((hop) => [hop.id, hop]));
  const rows = now.flows.slice(0, FLOW_ROWS).map((flow) => {
    const route = [...flow.route, flow.route[0]];
    const kinds = new Set(route.slice(1).map((n, index) => hops.get(`${route[index]}>${n}`)?.path).filter(Boolean));
    const slow = flow.planned_s && flow.measured_s > SLOW * flow.planned_s;
    const light = element("button", { type: "button", class: "link", onfocus: () => swarm.light(flow.id), onblur: () => swarm.light(null) }, flow.route.map((n) => names.get(n) ?? "gone").join(" → "));
    const row = element("tr", { onmouseenter: () => swarm.light(flow.id), onmouseleave: () => swarm.light(null) }, element("td", {}, light));
    const cells = [flow.microbatches || "not planned", flow.planned_s === null ? "–" : duration(flow.planned_s), null, [...kinds].map((kind) => PATHS[kind] || kind).join(", ") || "–"];
    cells.forEach((cell) => row.append(cell === null ? element("td", { class: slow ? "warm" : null }, flow.measured_s === null ? "–" : `${duration(flow.measured_s)}${slow ? " (slow)" : ""}`) : element("td", {}, String(cell))));
    return row;
  });
  const body = document.querySelector("#flows tbody");
  if (body.contains(document.activeElement)) return; // the keyboard's place is not taken away
  body.replaceChildren(...rows);
}

function peers() {
  const link = (peer) => element("td", {}, element("button", { type: "button", class: "link", onclick: () => drawer.open(peer.peer) }, peer.name));
  const body = document.querySelector("#peers tbody");
  if (body.contains(document.activeElement)) return;
  table(body, now.peers.slice(0, PEER_ROWS).map((peer) => [link(peer), placeOf(peer), stateOf(peer), `${peer.occupancy} of ${peer.capacity}`, rate(peer.microbatches_per_s), PATHS[peer.path] || peer.path]));
  put("peers-more", now.peers_seen > PEER_ROWS ? `The first ${PEER_ROWS} of ${now.peers_seen} peers; all of them are in the API.` : "");
}

function events() {
  const list = byId("events");
  const told = [...now.changes].reverse().slice(0, EVENT_ROWS);
  const said = told.length ? `${told[0].at}${told[0].text}${told.length}` : "none";
  if (list.dataset.said === said) return;
  list.dataset.said = said;
  const items = told.map((change) => element("li", { class: change.kind }, element("time", { datetime: new Date(1000 * change.at).toISOString() }, clock(change.at)), ` ${change.text}`));
  list.replaceChildren(...(items.length ? items : [element("li", {}, "Nothing yet: peers that come, go and move are told here.")]));
}

async function board() {
  const answer = await fetch(`${base}/work`, { cache: "no-store" }).catch(() => null);
  const body = document.querySelector("#board tbody");
  if (!answer?.ok || body.contains(document.activeElement)) return;
  const told = await answer.json();
  const link = (peer) => element("td", {}, element("button", { type: "button", class: "link", onclick: () => drawer.open(peer.peer) }, peer.name));
  const stages = (peer) => peer.stages.map((stage) => stage || "data").join(", ");
  table(body, told.peers.map((peer, index) => [index + 1, link(peer), count(peer.microbatches), stages(peer), count(peer.tokens), peer.seconds ? duration(peer.seconds) : "–", peer.audits, peer.is_here ? "yes" : "no"]));
  const more = told.contributors > told.peers.length ? ` The first ${told.peers.length} of ${told.contributors} peers.` : "";
  put("board-of", told.data_peers ? `After ${told.version} iterations, as ${told.agree} of ${told.data_peers} data peers say.${more}` : "No data peer tells of committed work yet.");
}

function connection(state) {
  const at = byId("connection");
  at.className = `pill ${state}`;
  at.textContent = state === "live" ? "live" : "the monitor does not answer; trying again";
}

byId("peers-details").addEventListener("toggle", () => now && peers());
byId("runs")?.addEventListener("change", (event) => (location.href = event.target.value));
byId("copy")?.addEventListener("click", async () => {
  const line = now.join.line;
  try {
    await navigator.clipboard.writeText(line);
    put("copied", "Copied.");
  } catch {
    getSelection().selectAllChildren(byId("join-line"));
    put("copied", "Selected: copy it with your keyboard.");
  }
});
setInterval(() => document.hidden || board(), BOARD_MS);
setInterval(() => document.hidden || plan.load(), PLAN_MS);
new Follower(base, show, connection).start();
