// Figures as people read them, and elements made without markup: text of the swarm is never parsed as HTML.

import { label } from "./axes.js";

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  for (const [big, small, name, rest] of [[86400, 3600, "d", "h"], [3600, 60, "h", "min"], [60, 1, "min", "s"]]) {
    if (whole >= big) {
      const left = Math.floor((whole % big) / small);
      return `${Math.floor(whole / big)} ${name}${left ? ` ${left} ${rest}` : ""}`;
    }
  }
  return "";
}

export const count = (number) => (number === null || number === undefined ? "unknown" : label(number));

export const bytes = (number) => (number === null || number === undefined ? "unknown" : `${count(number)}B`.replace(/(\d)B$/, "$1 B"));
export const rate = (number) => (number === null || number === undefined ? "not yet" : Number(number.toPrecision(2)).toString());
export const loss = (number) => (number === null || number === undefined ? "not measured" : number.toFixed(4));

// With the day where it is not today's.
export function clock(seconds) {
  const at = new Date(1000 * seconds);
  const time = { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false };
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? at.toLocaleTimeString([], time) : at.toLocaleString([], { month: "short", day: "numeric", ...time });
}

// Names are what peers call themselves: pictures have room for so much of one.
const LABEL = 11;
export const short = (name) => (name.length > LABEL ? `${name.slice(0, LABEL - 1)}…` : name);

const STATES = {
  ONLINE: "online", JOINING: "joining", SYNCING: "fetching the weights", DRAINING: "finishing, then leaving", GONE: "gone",
};
export const stateOf = (peer) => (peer.is_silent ? "not answering" : STATES[peer.state] || peer.state);
export const PATHS = { public: "public", punched: "punched through NATs", relayed: "through a circuit relay" };
export const placeOf = (peer) => (peer.role === "data" || peer.stage === 0 ? "data" : `stage ${peer.stage}`);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function table(body, rows) {
  body.replaceChildren(...rows.map((cells) => element("tr", {}, ...cells.map((cell) => (cell instanceof Node ? cell : element("td", {}, String(cell)))))));
}

export function put(id, text) {
  const at = document.getElementById(id);
  if (at && at.textContent !== text) at.textContent = text;
}
