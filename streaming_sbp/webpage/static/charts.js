// The charts, drawn by uPlot (a global of its script). One run: a colour for each line. Several: a colour for each run.

import { byId, clock as clockTime, element } from "./elements.js";

// What is not known is left blank.
const percent = (value) => (value == null ? "" : `${(100 * value).toFixed(1)} %`);
const decimal = (value) => (value == null ? "" : value.toFixed(3));
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const quantity = (value) => (value == null ? "" : compact.format(value));
function elapsed(seconds) {
  if (seconds == null) return "";
  const [unit, size] = seconds < 120 ? ["s", 1] : seconds < 7200 ? ["min", 60] : seconds < 172800 ? ["h", 3600] : ["d", 86400];
  return `${+(seconds / size).toFixed(1)} ${unit}`;
}

// `few`: drawn also when a few runs are overlaid, `main`: when many are. `from`: the table of the run's curves, if not `train`.
const CHARTS = [
  { id: "loss", title: "Loss, nats per token", format: decimal, lines: [
    { column: "heldout_loss", from: "evaluations", label: "held-out real", colour: "heldout", width: 2.5, points: true, main: true },
    { column: "loss_real", label: "training, real", colour: "real", width: 1, few: true },
    { column: "loss_synthetic", label: "training, synthetic", colour: "synthetic", width: 1, dash: [6, 3], few: true, optional: true },
    { column: "loss_pairs", label: "training, pairs", colour: "pairs", width: 1, dash: [2, 3], optional: true }] },
  { id: "share", title: "Synthetic share of tokens since the first snapshot", format: percent, zero: true, lines: [
    { column: "realised_share", label: "realised", colour: "synthetic", width: 2, main: true },
    { column: "scheduled_share", label: "scheduled", colour: "ink", width: 1.5, dash: [6, 4], few: true }] },
  { id: "rate", title: "Trained tokens per second", format: quantity, zero: true, lines: [
    { column: "tokens_per_second", label: "tokens/s", colour: "real", width: 1.5, main: true }] },
  { id: "documents", title: "Synthetic documents", format: quantity, zero: true, lines: [
    { column: "sent", label: "sent", colour: "ink", width: 1.5, dash: [6, 4] },
    { column: "trained", label: "trained", colour: "synthetic", width: 2, main: true },
    { column: "waiting", label: "waiting", colour: "real", width: 1.5 },
    { column: "dropped", label: "dropped", colour: "bad", width: 1.5 }] },
  { id: "accuracy", title: "Questions on facts of the corpus, answered rightly", format: percent, zero: true, lines: [
    { column: "question_accuracy", from: "evaluations", label: "facts known", colour: "heldout", width: 2.5, main: true, optional: true }] },
];
const STEPS_S = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, ...[1, 2, 6, 12, 24, 48, 120, 240, 480].map((h) => 3600 * h)];
const FEW = 3; // runs
const NULL_EXPAND = 2; // of uPlot: a null reaches to the neighbours in its own table, across the x of others
const LONGEST_GAP_S = 30; // as in the report: a trainer at work records more often
export const RUN_COLOURS = 8; // --run-0 ... of the style

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const has = (run, line) => run.curves[line.from ?? "train"].columns[line.column].some(Boolean); // not only zeros

// `runs`: [{ name, colour, curves, marks }], `axis`: "tokens" or "time".
export class Charts {
  #drawn = new Map(); // id -> { plot, lines, key }

  draw(runs, axis) {
    for (const chart of CHARTS) {
      const empty = !runs.some((run) => chart.lines.some((line) => has(run, line)));
      const lines = empty ? [] : runs.flatMap((run) => chart.lines
        .filter((line) => (line.main || runs.length === 1 || (line.few && runs.length <= FEW)) && (!line.optional || has(run, line)))
        .map((line) => ({ ...line, run })));
      this.#draw(chart, lines, runs, axis);
    }
  }

  forget() {
    for (const { plot, figure } of this.#drawn.values()) { plot.destroy(); figure.remove(); }
    this.#drawn.clear();
  }

  #draw(chart, lines, runs, axis) {
    const key = JSON.stringify([axis, lines.map((line) => [line.run.name, line.run.colour, line.column])]);
    let drawn = this.#drawn.get(chart.id);
    if (drawn && (drawn.key !== key || !lines.length)) {
      drawn.plot.destroy(); drawn.figure.remove(); this.#drawn.delete(chart.id); drawn = undefined;
    }
    if (!lines.length) return;
    const data = aligned(lines, axis, runs.length > 1);
    const marks = runs.flatMap((run) => run.marks.map((mark) => ({ ...mark, run, at: position(run, mark, axis, runs.length > 1) })));
    if (drawn) {
      drawn.marks.splice(0, Infinity, ...marks);
      update(drawn.plot, data);
    } else {
      this.#drawn.set(chart.id, { ...made(chart, lines, data, marks, axis, runs.length > 1), key, marks });
    }
  }
}

// New data; a part that the reader has zoomed into stays.
function update(plot, data) {
  const { min, max } = plot.scales.x, before = plot.data[0];
  const zoomed = before.length > 0 && (min > before[0] || max < before.at(-1));
  plot.batch(() => {
    plot.setData(data);
    if (zoomed) plot.setScale("x", { min, max });
  });
}

function position(run, at, axis, several) {
  if (axis === "tokens") return at.tokens;
  return several ? at.time - run.curves.train.columns.time[0] : at.time;
}

// One x for all lines: tokens, the clock, or with several runs the time since each began. A line goes on across what is
// not known, and over time ends where the trainer was not there: at a null.
export function aligned(lines, axis, several) {
  const tables = lines.map(({ run, from, column }) => {
    const { columns } = run.curves[from ?? "train"];
    const points = columns.time.map((time, i) => [position(run, { time, tokens: columns.tokens[i] }, axis, several), columns[column][i]])
      .filter(([, value]) => value != null);
    const ends = axis === "time" ? gaps(run.curves.train.columns.time).map((time) => [position(run, { time }, axis, several), null]) : [];
    const sorted = [...points, ...ends].sort(([a], [b]) => a - b);
    return [sorted.map(([x]) => x), sorted.map(([, y]) => y)];
  });
  return uPlot.join(tables, tables.map(() => [0, NULL_EXPAND]));
}

// The middles of the times in which nothing was recorded for much longer than from one row to the next.
function gaps(times) {
  const steps = times.slice(1).map((time, i) => time - times[i]);
  const usual = [...steps].sort((a, b) => a - b)[steps.length >> 1];
  const longest = Math.max(LONGEST_GAP_S, 5 * usual);
  return steps.flatMap((step, i) => (step > longest ? [times[i] + step / 2] : []));
}

function made(chart, lines, data, marks, axis, several) {
  const figure = element("figure", {}, element("figcaption", { textContent: chart.title }));
  figure.id = `chart-${chart.id}`;
  const place = CHARTS.slice(CHARTS.indexOf(chart) + 1).map((later) => byId(`chart-${later.id}`)).find(Boolean);
  byId("charts").insertBefore(figure, place ?? null);
  const clock = axis === "time" && !several;
  const inX = axis === "tokens" ? quantity : clock ? (value) => (value == null ? "" : clockTime(value)) : elapsed;
  const incrs = axis === "tokens" || clock ? undefined : STEPS_S;
  const axes = { stroke: style("soft"), grid: { stroke: style("line"), width: 1 }, ticks: { stroke: style("line"), width: 1 } };
  const size = () => ({ width: Math.max(200, figure.clientWidth - 16), height: figure.clientWidth < 500 ? 210 : 250 });
  const plot = new uPlot({
    ...size(),
    scales: { x: { time: clock }, y: { range: (_, low, high) => range(low, high, chart.zero) } },
    cursor: { sync: { key: "sbp" } },
    legend: { markers: { width: 0, fill: (drawing, i) => drawing.series[i].stroke() } },
    axes: [
      { ...axes, ...(incrs && { incrs }), ...(clock ? {} : { values: (_, ticks) => ticks.map(inX) }) },
      { ...axes, size: 56, values: (_, ticks) => ticks.map(chart.format === decimal ? (v) => +v.toFixed(3) : chart.format) },
    ],
    series: [
      { label: axis === "tokens" ? "tokens" : "time", value: (_, value) => inX(value) },
      ...lines.map((line) => ({
        label: several ? `${line.run.name}: ${line.label}` : line.label,
        stroke: several ? style(`run-${line.run.colour}`) : style(line.colour),
        width: line.width, dash: line.dash, points: { show: Boolean(line.points), size: 5 },
        value: (_, value) => chart.format(value),
      })),
    ],
    hooks: { draw: [(drawing) => drawMarks(drawing, marks, several)] },
  }, data, figure);
  new ResizeObserver(() => plot.root.isConnected && plot.setSize(size())).observe(figure);
  return { plot, figure };
}

function range(low, high, zero) {
  if (low == null) return [0, 1];
  if (zero) low = Math.min(0, low);
  const margin = 0.06 * (high - low || Math.abs(high) || 1);
  return [zero && low === 0 ? 0 : low - margin, high + margin];
}

function drawMarks({ ctx, bbox, valToPos, scales }, marks, several) {
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  ctx.textBaseline = "alphabetic";
  ctx.lineWidth = ratio;
  let free = -Infinity; // where the next label has room
  for (const mark of marks.filter(({ at }) => at != null && at >= scales.x.min && at <= scales.x.max).sort((a, b) => a.at - b.at)) {
    const x = Math.round(valToPos(mark.at, "x", true));
    const colour = mark.kind === "rollback" ? "bad" : mark.kind === "resume" ? "soft" : several ? `run-${mark.run.colour}` : "mark";
    ctx.strokeStyle = ctx.fillStyle = style(colour);
    ctx.setLineDash(mark.kind === "rollback" ? [] : [4 * ratio, 4 * ratio]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    const label = mark.version == null ? "" : mark.kind === "rollback" ? `back to v${mark.version}` : `v${mark.version}`;
    if (label && x > free) {
      ctx.fillText(label, x, bbox.top - 4 * ratio);
      free = x + ctx.measureText(label).width + 4 * ratio;
    }
  }
  ctx.restore();
}
