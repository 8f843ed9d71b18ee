// One curve chart: size, colours of the scheme, a readout for pointer and arrow keys. Knows nothing of runs.
/* global uPlot */

/** Distances between two numbers of steps on an axis. */
const WHOLE = Array.from({ length: 9 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();

const schemes = matchMedia("(prefers-color-scheme: dark)");
const charts = new Set();
schemes.addEventListener("change", () => charts.forEach((chart) => chart.build()));

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** A number in as few signs as tell it. */
export function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}

export class Chart {
  /**
   * figure: holds .plot and .readout. series: [{ colour, alpha, width, points }]. at: names a place on the x axis.
   * whole: whether x is a whole number.
   */
  constructor(figure, { series, at, whole = true, range = null }) {
    this.figure = figure;
    this.plot = figure.querySelector(".plot");
    this.readout = figure.querySelector(".readout");
    this.series = series;
    this.at = at;
    this.whole = whole;
    this.range = range;
    this.data = [[], ...series.map(() => [])];
    this.build();
    charts.add(this);
    new ResizeObserver(() => this.resize()).observe(this.plot);
    figure.addEventListener("keydown", (event) => this.move(event));
  }

  /** Show other data: x, then a list for each series. */
  show(data) {
    this.data = data;
    if (this.visible) this.drawing.setData(data);
    const idx = this.drawing.cursor.idx;
    if (idx === null || idx === undefined) this.tell(data[0].length - 1);
  }

  get visible() {
    return this.plot.clientWidth > 0;
  }

  build() {
    this.drawing?.destroy();
    const muted = colour("--muted");
    const axis = {
      stroke: muted,
      font: `12px ${colour("--font")}`,
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { stroke: colour("--line"), width: 1, size: 4 },
    };
    this.drawing = new uPlot({
      width: Math.max(this.plot.clientWidth, 100),
      height: Math.max(this.plot.clientHeight, 100),
      legend: { show: false },
      padding: [8, 24, 0, 0],
      cursor: { drag: { x: false, y: false }, y: false },
      scales: { x: { time: false, ...(this.range ? { range: this.range } : {}) } },
      axes: [
        { ...axis, size: 28, space: 60, ...(this.whole ? { incrs: WHOLE } : {}) },
        { ...axis, size: 60, space: 32, values: (_, values) => values.map(short) },
      ],
      series: [{}, ...this.series.map((one) => ({
        stroke: alpha(colour(one.colour), one.alpha ?? 1),
        width: one.width ?? 2,
        spanGaps: true,
        points: { show: one.points ?? false, size: 7, fill: colour(one.colour) },
      }))],
      hooks: { setCursor: [(drawing) => this.tell(drawing.cursor.idx)] },
    }, this.data, this.plot);
  }

  resize() {
    if (!this.visible) return;
    this.drawing.setSize({ width: this.plot.clientWidth, height: this.plot.clientHeight });
    this.drawing.setData(this.data);
  }

  /** Say what stands at a place: below the pointer, else at the end. */
  tell(idx) {
    const place = idx ?? this.data[0].length - 1;
    const x = this.data[0][place];
    this.readout.textContent = x === undefined ? "" : this.words(place);
    this.figure.setAttribute("aria-label", `${this.figure.dataset.title}: ${this.readout.textContent}`);
  }

  words(place) {
    const values = this.data.slice(1).map((column) => column[place]).filter((value) => value != null);
    return `${this.at(this.data[0][place])}: ${values.map(short).join(" · ")}`;
  }

  move(event) {
    const last = this.data[0].length - 1;
    const now = this.drawing.cursor.idx ?? last;
    const far = Math.max(1, Math.round(last / 10));
    const next = {
      ArrowLeft: now - 1, ArrowRight: now + 1, PageDown: now - far, PageUp: now + far, Home: 0, End: last,
    }[event.key];
    if (next === undefined || last < 0) return;
    event.preventDefault();
    const place = Math.min(last, Math.max(0, next));
    const left = this.drawing.valToPos(this.data[0][place], "x");
    this.drawing.setCursor({ left, top: 0 });
    this.tell(place);
    document.getElementById("said").textContent = this.words(place);
  }
}

/** A colour with some transparency. */
function alpha(name, share) {
  if (share === 1) return name;
  return `color-mix(in srgb, ${name} ${share * 100}%, transparent)`;
}
