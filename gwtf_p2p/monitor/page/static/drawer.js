// The details of one peer, beside the page; they are fetched again while they are open.

import { bytes, clock, count, duration, element, stateOf, placeOf, PATHS } from "./words.js";

const AGAIN_MS = 4000;

export class Drawer {
  constructor(base, rowOf) {
    this.base = base;
    this.rowOf = rowOf;
    this.dialog = document.getElementById("drawer");
    this.body = document.getElementById("drawer-body");
    this.title = document.getElementById("drawer-title");
    document.getElementById("drawer-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("close", () => clearInterval(this.timer));
  }

  async open(peer) {
    this.peer = peer;
    this.title.textContent = `Peer ${this.rowOf(peer)?.name ?? peer.slice(-6)}`;
    this.body.replaceChildren(element("p", { class: "muted" }, "Looking"));
    if (!this.dialog.open) this.dialog.showModal();
    clearInterval(this.timer);
    this.timer = setInterval(() => this.load(), AGAIN_MS);
    await this.load();
  }

  async load() {
    const peer = this.peer;
    const answer = await fetch(`${this.base}/peers/${encodeURIComponent(peer)}`, { cache: "no-store" }).catch(() => null);
    if (peer !== this.peer || !answer) return;
    if (answer.ok) this.show(await answer.json(), this.rowOf(peer));
    else this.body.replaceChildren(element("p", {}, "Nothing is known of this peer any more."));
  }

  show(told, row) {
    const parts = [element("p", { class: "muted" }, told.peer)];
    if (row) parts.push(lines([["State", stateOf(row)], ["Place", placeOf(row)], ["Path", PATHS[row.path] || row.path], ["Holds", `${row.occupancy} of ${row.capacity} microbatches`], ["Behind the run", row.behind ? `${row.behind} iterations` : "no"]]));
    else parts.push(element("p", {}, "Its record has expired: it is gone."));
    const done = told.contributed;
    const since = (value) => (value === null || value === undefined ? "not yet" : duration(value));
    parts.push(element("h3", {}, "Contribution"), lines([
      ["Committed", done ? `${count(done.microbatches)} microbatches, ${count(done.tokens)} tokens` : "nothing yet"],
      ["Of all work", done ? `${(100 * done.share).toFixed(1)} %` : "nothing yet"],
      ["Computing time", done ? duration(done.seconds) : "nothing yet"],
      ["Audits passed", done ? done.audits : "none"],
      ["Computed since its start", since(told.computed_s)],
    ]));
    if (told.wire_version !== undefined) parts.push(...this.technical(told));
    parts.push(element("h3", {}, "Last words"));
    const words = told.last_words || [];
    parts.push(words.length ? element("ul", {}, ...words.map((word) => element("li", {}, `${clock(word.at)} ${word.text}`)).reverse()) : element("p", { class: "muted" }, "Nothing was seen happening to it."));
    this.body.replaceChildren(...parts);
  }

  technical(told) {
    const recoveries = Object.entries(told.recoveries).map(([kind, number]) => `${kind} ${number}`).join(", ");
    const time = (value) => (value === null ? "not measured" : duration(value));
    const rows = [
      ["Protocol version", told.wire_version], ["Weights version", told.weights_version],
      ["Forward, backward", `${time(told.forward_s)}, ${time(told.backward_s)}`],
      ["Line", told.line_bytes_per_s === null ? "not measured" : `${bytes(told.line_bytes_per_s)}/s`],
      ["Memory kept", told.memory_limit_bytes === null ? bytes(told.kept_bytes) : `${bytes(told.kept_bytes)} of ${bytes(told.memory_limit_bytes)}`],
      ["Recoveries", recoveries || "none"], ["Sent twice", told.resent_bytes === null ? "nothing" : bytes(told.resent_bytes)],
    ];
    if (told.shard !== null && told.shard >= 0) rows.push(["Part of the data", `number ${told.shard}, counted from 0`]);
    const parts = [element("h3", {}, "Machine and line"), lines(rows)];
    if (told.addresses) parts.push(element("h3", {}, "Addresses"), element("ul", {}, ...(told.addresses.length ? told.addresses : ["none published"]).map((address) => element("li", {}, address))));
    if (told.links.length) {
      const links = told.links.slice(0, 12).map((link) => element("li", {}, `${link.to}: ${duration(link.round_trip_s)}, ${bytes(link.bytes_per_s)}/s, ${PATHS[link.path] || link.path} (${link.source})`));
      parts.push(element("h3", {}, `Links measured: ${told.links.length}`), element("ul", {}, ...links));
    }
    return parts;
  }
}

const lines = (pairs) => element("dl", {}, ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
