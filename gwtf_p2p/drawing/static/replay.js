"use strict";
// Plays the bars of one iteration. Everything is drawn from the data in the page; nothing is loaded.
(() => {
  const told = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const COLUMN = 170, ROW = 56, BOX = [104, 34], TOP = 46, LEFT = 90, BAND = 18, WIDTH = 1160;
  const seconds = told.seconds || 1;
  const byId = (id) => document.getElementById(id);

  function make(parent, name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  const short = (name) => (name.length > 14 ? "…" + name.slice(-13) : name);
  const bars = told.bars.map(([peer, what, about, began, ended, to]) => ({ peer, what, about, began, ended, to }));
  const works = bars.filter((bar) => bar.to === null);
  const transfers = bars.filter((bar) => bar.to !== null);

  // ---- the swarm, a column for each stage

  const swarm = byId("swarm");
  const stages = Math.max(0, ...told.peers.map(([, stage]) => stage));
  const columns = Array.from({ length: stages + 1 }, () => []);
  told.peers.forEach(([, stage], number) => columns[stage].push(number));
  const tallest = Math.max(1, ...columns.map((column) => column.length));
  const size = [Math.max(1, stages) * COLUMN + BOX[0] + 40, TOP + tallest * ROW + 12];
  swarm.setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
  swarm.style.maxWidth = `${size[0] * 1.3}px`;
  const place = [];
  columns.forEach((column, stage) => {
    const x = 20 + BOX[0] / 2 + stage * COLUMN;
    make(swarm, "text", { x, y: 20, "text-anchor": "middle", class: "grey" }, stage ? `stage ${stage}` : "data peers");
    column.forEach((number, i) => (place[number] = [x, TOP + ((i + 0.5) * tallest * ROW) / column.length]));
  });
  const lines = new Map();
  for (const { peer, to } of transfers) {
    const key = Math.min(peer, to) * 1e6 + Math.max(peer, to);
    if (!lines.has(key)) lines.set(key, make(swarm, "line", { x1: place[peer][0], y1: place[peer][1], x2: place[to][0], y2: place[to][1], class: "axis" }));
  }
  const boxes = told.peers.map(([name], number) => {
    const [x, y] = [place[number][0] - BOX[0] / 2, place[number][1] - BOX[1] / 2];
    make(swarm, "rect", { x, y, width: BOX[0], height: BOX[1], rx: 7, class: "peer" });
    const fill = make(swarm, "rect", { x, y, width: 0, height: BOX[1], rx: 7, "fill-opacity": 0.75 });
    make(swarm, "text", { x: place[number][0], y: place[number][1] + 4, "text-anchor": "middle" }, short(name));
    return fill;
  });
  const dots = make(swarm, "g", {});

  // ---- the chart

  const gantt = byId("gantt");
  const bottom = 8 + told.peers.length * BAND;
  gantt.setAttribute("viewBox", `0 0 ${WIDTH} ${bottom + 26}`);
  const across = (at) => LEFT + (at / seconds) * (WIDTH - LEFT - 14);
  for (const [tick, label] of told.ticks) {
    make(gantt, "line", { x1: across(tick), x2: across(tick), y1: 4, y2: bottom, class: "axis" });
    make(gantt, "text", { x: across(tick), y: bottom + 16, "text-anchor": "middle", class: "grey" }, `${label} s`);
  }
  told.peers.forEach(([name], number) => make(gantt, "text", { x: LEFT - 8, y: 8 + number * BAND + 12, "text-anchor": "end" }, short(name)));
  for (const bar of works) {
    const width = Math.max(0.7, across(bar.ended) - across(bar.began));
    const box = make(gantt, "rect", { x: across(bar.began), y: 9 + bar.peer * BAND, width, height: 13, fill: told.colours[bar.what] || "#888" });
    make(box, "title", {}, `${told.peers[bar.peer][0]}: ${bar.what} ${told.abouts[bar.about]}, ${bar.began.toFixed(2)}-${bar.ended.toFixed(2)} s`);
  }
  const cursor = make(gantt, "line", { y1: 2, y2: bottom + 2, class: "cursor" });

  for (const what of new Set(works.map((bar) => bar.what))) {
    const entry = document.createElement("span");
    const mark = document.createElement("i");
    mark.style.background = told.colours[what] || "#888";
    entry.append(mark, what);
    byId("legend").append(entry);
  }
  byId("legend").append("dots: transfers, in the colour of what they are for");

  // ---- a moment

  let moment = 0;
  let playing = false;
  let last = 0;

  function show() {
    const busy = new Array(told.peers.length).fill(null);
    for (const bar of works) if (bar.began <= moment && moment < bar.ended) busy[bar.peer] = bar;
    busy.forEach((bar, number) => {
      const share = bar ? (moment - bar.began) / Math.max(1e-9, bar.ended - bar.began) : 0;
      boxes[number].setAttribute("width", Math.max(bar ? 10 : 0, BOX[0] * share));
      if (bar) boxes[number].setAttribute("fill", told.colours[bar.what] || "#888");
    });
    dots.replaceChildren();
    let travelling = 0;
    for (const bar of transfers) {
      if (bar.began > moment || moment >= bar.ended) continue;
      travelling += 1;
      const share = (moment - bar.began) / Math.max(1e-9, bar.ended - bar.began);
      const [a, b] = [place[bar.peer], place[bar.to]];
      const dot = make(dots, "circle", { cx: a[0] + (b[0] - a[0]) * share, cy: a[1] + (b[1] - a[1]) * share, r: 5, fill: told.colours[bar.what] || "#888" });
      make(dot, "title", {}, `${bar.what} ${told.abouts[bar.about]}`);
    }
    cursor.setAttribute("x1", across(moment));
    cursor.setAttribute("x2", across(moment));
    byId("clock").textContent = `${moment.toFixed(2)} s`;
    byId("moment").value = String(Math.round((1000 * moment) / seconds));
    byId("now").textContent = `${busy.filter(Boolean).length} of ${told.peers.length} peers compute, ${travelling} ${travelling === 1 ? "transfer" : "transfers"} under way`;
  }

  function go(to) {
    moment = Math.min(seconds, Math.max(0, to));
    show();
  }

  function play(wanted) {
    playing = wanted;
    if (playing && moment >= seconds) moment = 0;
    byId("play").textContent = playing ? "Stop" : "Play";
    byId("play").setAttribute("aria-pressed", String(playing));
    byId("now").setAttribute("aria-live", playing ? "off" : "polite"); // nobody listens to sixty sentences a second
    last = performance.now();
    if (playing) requestAnimationFrame(frame);
  }

  function frame(now) {
    if (!playing) return;
    go(moment + ((now - last) / 1000) * Number(byId("speed").value));
    last = now;
    if (moment >= seconds) play(false);
    else requestAnimationFrame(frame);
  }

  byId("play").addEventListener("click", () => play(!playing));
  byId("moment").addEventListener("input", (event) => go((Number(event.target.value) / 1000) * seconds));
  gantt.addEventListener("click", (event) => {
    const box = gantt.getBoundingClientRect();
    go((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - 14) * seconds);
  });
  document.addEventListener("keydown", (event) => {
    if (["INPUT", "SELECT", "BUTTON"].includes(event.target.tagName)) return;
    const region = event.target.closest(".scroll");
    if (event.key !== " " && region && region.scrollWidth > region.clientWidth) return; // the arrows scroll it
    if (event.key === " ") play(!playing);
    else if (event.key === "ArrowRight") go(moment + seconds / 100);
    else if (event.key === "ArrowLeft") go(moment - seconds / 100);
    else return;
    event.preventDefault();
  });
  if (location.hash) go(Number(location.hash.slice(1)) || 0);
  else show();
})();
