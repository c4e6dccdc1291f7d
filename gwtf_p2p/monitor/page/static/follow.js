// The run's document as it is now: fetched once, then kept by the changes that the server sends. A browser that was away for
// too long is told to fetch anew.

const TABLES = { peers: "n", flows: "id", hops: "id" };
const AGAIN_MS = 3000;

export class Follower {
  constructor(base, onChange, onConnection) {
    this.base = base;
    this.onChange = onChange;
    this.onConnection = onConnection;
    this.document = null;
    this.source = null;
  }

  async start() {
    try {
      const answer = await fetch(`${this.base}/state`, { cache: "no-store" });
      if (!answer.ok) throw new Error(`the monitor answers ${answer.status}`);
      this.document = await answer.json();
    } catch {
      this.onConnection("lost");
      setTimeout(() => this.start(), AGAIN_MS);
      return;
    }
    this.onChange(this.document, { whole: true, changes: [], samples: [] });
    this.listen();
  }

  listen() {
    this.source?.close();
    const source = (this.source = new EventSource(`${this.base}/events?after=${encodeURIComponent(this.document.id)}`));
    source.addEventListener("open", () => this.onConnection("live"));
    source.addEventListener("error", () => {
      this.onConnection("lost");
      if (source.readyState === EventSource.CLOSED) {
        this.source = null;
        setTimeout(() => this.start(), AGAIN_MS);
      }
    });
    source.addEventListener("reset", () => {
      source.close();
      this.start();
    });
    source.addEventListener("change", (event) => this.change(JSON.parse(event.data)));
  }

  change(told) {
    const now = this.document;
    Object.assign(now, told.set || {});
    now.seen_at = told.seen_at;
    for (const [name, table] of Object.entries(told.tables || {})) {
      const key = TABLES[name];
      const rows = new Map(now[name].map((row) => [row[key], row]));
      for (const gone of table.gone || []) rows.delete(gone);
      for (const row of table.rows || []) rows.set(row[key], { ...rows.get(row[key]), ...row });
      now[name] = [...rows.values()];
    }
    const changes = told.changes || [];
    now.changes = [...now.changes, ...changes].slice(-60);
    this.onChange(now, { whole: false, changes, samples: told.samples || [] });
  }
}
