// The planned iteration as a Gantt chart: one row for each peer, one bar for each computation. Below, with a scale of its own,
// what data peers have measured beside what was planned for it.

import { ticks } from "./axes.js";
import { drawn, duration, element, placeOf, put, short } from "./words.js";

const ROW = 20;
const LEFT = 118;
const LEAST_WIDTH = 620;
const LINES = 6;
const EDGE = 24;
const AS_PLANNED = 1.1; // measured over planned: nearer is no news
const NAMES = { forward: "forward", loss: "loss", backward: "backward" };

export class Plan {
  constructor(base, holder, measured, legend) {
    this.base = base;
    this.holder = holder;
    this.measured = measured;
    this.legend = legend;
    this.legend.replaceChildren(...Object.entries(NAMES).map(([kind, name]) => {
      const item = document.createElement("li");
      item.append(drawn("svg", { viewBox: "0 0 28 18", "aria-hidden": "true" }, drawn("rect", { x: 3, y: 3, width: 22, height: 12, class: `bar-${kind}` })), name);
      return item;
    }));
    new ResizeObserver(() => this.told && this.draw(this.told)).observe(holder);
  }

  async load() {
    const answer = await fetch(`${this.base}/plan`, { cache: "no-store" });
    if (answer.ok) this.draw(await answer.json());
  }

  draw(told) {
    this.told = told;
    const { rows, seconds } = told;
    this.compare(told.measured);
    put("plan-reason", rows.length ? `${told.microbatches} microbatches in ${duration(seconds)}. ${told.reason}` : told.reason);
    this.legend.hidden = !rows.length;
    if (!rows.length) {
      this.holder.replaceChildren();
      return;
    }
    const width = Math.max(LEAST_WIDTH, this.holder.clientWidth);
    const height = rows.length * ROW + 26;
    const x = (second) => LEFT + (second / seconds) * (width - LEFT - 8);
    const label = `Planned iteration of ${told.microbatches} microbatches on ${rows.length} peers, ${duration(seconds)} long`;
    const svg = drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    for (const second of ticks(0, seconds, LINES)) {
      const at = x(second);
      const text = drawn("text", { x: at, y: height - 6, class: "muted", "text-anchor": second === 0 ? "start" : at > width - EDGE ? "end" : "middle" });
      text.textContent = duration(second);
      svg.append(drawn("line", { x1: at, x2: at, y1: 0, y2: rows.length * ROW, class: "grid" }), text);
    }
    rows.forEach((row, index) => {
      const name = drawn("text", { x: 0, y: index * ROW + 14 });
      name.textContent = `${short(row.name)} ${placeOf(row)}`;
      svg.append(name);
      for (const [what, microbatch, begin, end] of row.bars) {
        const bar = drawn("rect", { x: x(begin).toFixed(1), y: index * ROW + 3, width: Math.max(1, x(end) - x(begin) - 0.5).toFixed(1), height: ROW - 6, class: `bar-${what}` });
        const title = drawn("title");
        title.textContent = `${row.name}: ${what} of microbatch ${microbatch}, from ${duration(begin)} to ${duration(end)}`;
        bar.append(title);
        svg.append(bar);
      }
    });
    this.holder.replaceChildren(svg);
  }

  compare(rows) {
    put("measured-reason", rows.length ? "" : "Nothing is measured yet: this needs one whole iteration.");
    const most = Math.max(1e-9, ...rows.flatMap((row) => [row.planned_s ?? 0, row.measured_s]));
    const bar = (kind, seconds) => drawn("rect", { x: 0, y: kind === "planned" ? 1 : 8, width: `${(100 * seconds) / most}%`, height: 6, class: `bar-${kind}` });
    this.measured.replaceChildren(...rows.map((row) => {
      const bars = [bar("measured", row.measured_s)];
      if (row.planned_s !== null) bars.unshift(bar("planned", row.planned_s));
      const words = row.planned_s ? `planned ${duration(row.planned_s)}, measured ${duration(row.measured_s)}, ${against(row)}` : `measured ${duration(row.measured_s)}, no plan for it`;
      return element("li", {}, element("span", {}, row.what), element("span", { class: "muted" }, words), drawn("svg", { class: "pair", "aria-hidden": "true" }, ...bars));
    }));
  }
}

function against({ planned_s, measured_s }) {
  const factor = measured_s / planned_s;
  if (factor > AS_PLANNED) return `${factor.toPrecision(2)} times as long`;
  return factor < 1 / AS_PLANNED ? `${(1 / factor).toPrecision(2)} times as fast` : "as planned";
}
