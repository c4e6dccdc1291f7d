// The planned iteration as a Gantt chart: one row for each peer, one bar for each computation.

import { drawn, duration, placeOf, put } from "./words.js";

const ROW = 20;
const LEFT = 118;
const LEAST_WIDTH = 620;
const NAMES = { forward: "forward", loss: "loss", backward: "backward" };

export class Plan {
  constructor(base, holder, legend) {
    this.base = base;
    this.holder = holder;
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
    for (let part = 0; part <= 4; part++) {
      const at = x((seconds * part) / 4);
      const text = drawn("text", { x: at, y: height - 6, class: "muted", "text-anchor": part === 0 ? "start" : part === 4 ? "end" : "middle" });
      text.textContent = duration((seconds * part) / 4);
      svg.append(drawn("line", { x1: at, x2: at, y1: 0, y2: rows.length * ROW, class: "grid" }), text);
    }
    rows.forEach((row, index) => {
      const name = drawn("text", { x: 0, y: index * ROW + 14 });
      name.textContent = `${row.name} ${placeOf(row)}`;
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
}
