// Loss and speed over tokens, with uPlot. Both charts show the same part of the run; a part that is zoomed into is fetched anew,
// as finely as it is known.

import { ticks } from "./axes.js";
import { count, element, loss, table } from "./words.js";

const HEIGHT = 260;
const LIVE_POINTS = 2000;
const TABLE_ROWS = 24;

export class Charts {
  constructor(base, lossHolder, speedHolder) {
    this.base = base;
    this.holders = [lossHolder, speedHolder];
    this.points = [];
    this.part = null;
    this.isLog = false;
    this.plots = [];
    new ResizeObserver(() => this.resize()).observe(lossHolder);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.build());
    for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => this.zoom(button.dataset.zoom));
    const log = document.getElementById("log");
    log.addEventListener("click", () => {
      this.isLog = !this.isLog;
      log.setAttribute("aria-pressed", String(this.isLog));
      this.build();
    });
  }

  async load() {
    const query = new URLSearchParams({ points: 800 });
    if (this.part) {
      query.set("first", Math.max(0, Math.floor(this.part[0])));
      query.set("last", Math.max(0, Math.ceil(this.part[1])));
    }
    const wanted = (this.wanted = query.toString());
    const answer = await fetch(`${this.base}/history?${query}`, { cache: "no-store" });
    if (!answer.ok || wanted !== this.wanted) return;
    const told = await answer.json();
    this.span = [told.first, told.last];
    this.perIteration = told.tokens_per_iteration;
    this.points = told.points;
    this.build();
  }

  add(samples) {
    if (!samples.length) return;
    const newest = samples.at(-1)[0];
    if (this.span && this.perIteration) this.span[1] = Math.max(this.span[1], newest / this.perIteration - 1);
    if (this.part) return;
    const kept = new Map(this.points.map((point) => [point[0], point]));
    for (const sample of samples) kept.set(sample[0], sample);
    this.points = [...kept.values()].filter((point) => point[0] <= newest).sort((one, other) => one[0] - other[0]);
    if (this.points.length > LIVE_POINTS) this.load();
    else if (this.plots.length) this.show();
    else this.build();
  }

  zoom(how) {
    if (!this.span || this.span[1] <= this.span[0]) return;
    let [first, last] = this.part || this.span;
    const width = last - first;
    if (how === "in") [first, last] = [first + width / 4, last - width / 4];
    if (how === "out") [first, last] = [first - width / 2, last + width / 2];
    if (how === "left") [first, last] = [first - width / 2, last - width / 2];
    if (how === "right") [first, last] = [first + width / 2, last + width / 2];
    if (first < this.span[0]) [first, last] = [this.span[0], Math.min(this.span[1], last + this.span[0] - first)];
    if (last > this.span[1]) [first, last] = [Math.max(this.span[0], first - last + this.span[1]), this.span[1]];
    const whole = how === "all" || (first <= this.span[0] && last >= this.span[1]);
    this.part = whole ? null : [first, Math.max(last, first + 2)];
    this.load();
  }

  data() {
    const column = (index) => this.points.map((point) => point[index]);
    return [[column(0), column(2), column(3), column(1), column(4)], [column(0), column(5)]];
  }

  build() {
    for (const plot of this.plots) plot.destroy();
    this.plots = [];
    if (this.points.length < 2) {
      for (const holder of this.holders) holder.replaceChildren(element("p", { class: "muted" }, "Two iterations make a line; it begins when they are committed."));
      return;
    }
    for (const holder of this.holders) holder.replaceChildren();
    const css = getComputedStyle(document.documentElement);
    const colour = (name) => css.getPropertyValue(`--${name}`).trim();
    const lines = (pixels) => (plot, index, low, high) => ticks(low, high, Math.max(2, Math.floor((index ? HEIGHT : plot.width) / pixels)));
    const axis = (label, values, splits = lines(44)) => ({ label, splits, stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line") }, font: "12px system-ui", labelFont: "12px system-ui", labelSize: 20, values });
    const told = (_, splits) => splits.map(count);
    const tokens = axis("tokens", told, lines(90));
    const hooks = { setSelect: [(plot) => this.selected(plot)], setCursor: [(plot) => plot.cursor.left < 0 && this.plots.includes(plot) && this.newest()] };
    const options = (series, y, bands, scale) => ({
      width: this.holders[0].clientWidth, height: HEIGHT, series, bands, hooks, axes: [tokens, { ...y, size: 62 }],
      scales: { x: { time: false }, y: scale }, cursor: { drag: { x: true, y: false, setScale: false } },
    });
    const value = (_, v) => (v === null || v === undefined ? "–" : v.toFixed(4));
    const x = { label: "tokens", value: (_, v) => (v === null ? "–" : count(v)) };
    const lossSeries = [
      x,
      { label: "lowest", class: "quiet", stroke: "transparent", value, points: { show: false } },
      { label: "highest", class: "quiet", stroke: "transparent", value, points: { show: false } },
      { label: "loss", stroke: colour("accent"), width: 2, value, points: { show: this.points.length < 40 } },
      { label: "held-out loss", stroke: colour("slow"), width: 2, dash: [6, 4], spanGaps: true, value, class: this.points.some((point) => point[4] !== null) ? "shown" : "quiet" },
    ];
    const speedSeries = [x, { label: "tokens/s", stroke: colour("online"), width: 2, spanGaps: true, value: (_, v) => (v === null ? "–" : count(v)), points: { show: this.points.length < 40 } }];
    const [lossData, speedData] = this.data();
    this.plots = [
      new uPlot(options(lossSeries, this.isLog ? axis("loss (log scale)", undefined, null) : axis("loss", told), [{ series: [2, 1], fill: colour("band") }], this.isLog ? { distr: 3 } : {}), lossData, this.holders[0]),
      new uPlot(options(speedSeries, axis("tokens/s", told), [], { range: (_, low, high) => [0, (high || 1) * 1.05] }), speedData, this.holders[1]),
    ];
    this.newest();
    this.say();
  }

  // The legends say the newest values while no pointer asks for others.
  newest() {
    const last = (column) => column.findLastIndex((value) => value !== null && value !== undefined);
    for (const plot of this.plots) if (plot.cursor.left < 0 && plot.data[0].length) plot.setLegend({ idxs: plot.data.map(last) });
  }

  selected(plot) {
    if (plot.select.width < 4 || !this.perIteration) return;
    const at = (pixel) => plot.posToVal(pixel, "x") / this.perIteration - 1;
    this.part = [at(plot.select.left), at(plot.select.left + plot.select.width)];
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.load();
  }

  show() {
    const data = this.data();
    this.plots.forEach((plot, index) => plot.setData(data[index]));
    this.newest();
    this.say();
  }

  say() {
    const [first, last] = [this.points[0], this.points.at(-1)];
    const lowest = Math.min(...this.points.map((point) => point[2]));
    const says = `Loss over tokens: ${loss(first[1])} at ${count(first[0])} tokens, ${loss(last[1])} at ${count(last[0])} tokens, lowest ${loss(lowest)}`;
    this.holders[0].setAttribute("aria-label", says);
    this.holders[1].setAttribute("aria-label", `Tokens per second: ${count(last[5])} at ${count(last[0])} tokens`);
    const every = Math.max(1, Math.floor(this.points.length / TABLE_ROWS));
    const rows = this.points.filter((_, index) => (this.points.length - 1 - index) % every === 0);
    table(document.querySelector("#points tbody"), rows.map((point) => [count(point[0]), loss(point[1]), point[4] === null ? "–" : loss(point[4]), count(point[5])]));
  }

  resize() {
    for (const [index, plot] of this.plots.entries()) {
      const width = this.holders[index].clientWidth;
      if (width && width !== plot.width) plot.setSize({ width, height: HEIGHT });
    }
  }
}
