// Where an axis has its lines, and how numbers are shortened: the rule of gwtf_p2p/drawing/static/axes.json, by which the
// pictures of reports are drawn too. The page brings it along.

const rule = JSON.parse(document.body.dataset.axes);

export function ticks(low, high, about = 6) {
  const raw = (high - low || 1) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = rule.steps.map((each) => each * power).find((each) => each >= raw * (1 - 1e-9));
  const found = [];
  for (let number = Math.ceil(low / step - 1e-9); number <= Math.floor(high / step + 1e-9); number++) found.push(Number((number * step).toFixed(10)));
  return found;
}

export function label(number) {
  for (const [least, letter, divisor] of rule.units) {
    if (Math.abs(number) >= least) {
      const shown = number / divisor;
      return `${shown >= 100 ? shown.toFixed(0) : Number(shown.toPrecision(rule.digits))} ${letter}`;
    }
  }
  return Number.isInteger(number) ? String(number) : String(Number(number.toPrecision(rule.digits)));
}
