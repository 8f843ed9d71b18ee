// What a run has come to, in the browser: the history, and the events that follow it. Draws nothing.

const COLUMNS = ["loss", "learning_rate", "seconds", "memory_gib", "time"];
const MOST = 4000;
const RECENT_BANDS = 10;
const PACE = 100;

export class RunData {
  constructor(history) {
    this.step = history.step;
    this.started = history.started;
    this.ended = history.ended;
    this.last = history.last;
    this.columns = history.columns;
    this.bands = history.bands;
    this.evaluations = history.evaluations;
    this.checkpoints = history.checkpoints;
    this.validations = history.validations;
    this.notices = history.notices;
    this.preview = history.preview;
  }

  get maxSteps() {
    return this.started.max_steps ?? null;
  }

  /** Share of the steps that are done. */
  get progress() {
    return this.maxSteps ? Math.min(1, this.step / this.maxSteps) : 0;
  }

  /** Seconds to the last step at the pace of late, renders and all; null: unknown. */
  get secondsLeft() {
    const { step, time } = this.columns;
    const end = step.length - 1;
    let begin = Math.max(0, step.length - PACE);
    // A pause between two starts is no pace.
    while (begin < end && time[begin] < (this.started.time ?? 0)) begin += 1;
    if (this.maxSteps === null || begin >= end) return null;
    return Math.max(0, (this.maxSteps - step[end]) * (time[end] - time[begin]) / (step[end] - step[begin]));
  }

  /** The picture to show: of the render on its way, else the latest. */
  get picture() {
    if (this.preview) return { ...this.preview, making: true };
    for (const event of this.validations.toReversed()) {
      const file = (event.files ?? []).findLast((name) => /\.(png|jpg|webp)$/.test(name));
      if (file) return { ...event, file, making: false };
    }
    return null;
  }

  /** Take in an event. */
  add(event) {
    if (typeof event.step === "number" && event.event !== "run_end") {
      if (event.step < this.step) this.rewind(event.step);
      this.step = event.step;
    }
    this[`on_${event.event}`]?.(event);
  }

  on_step(event) {
    const { columns } = this;
    if (columns.step.at(-1) >= event.step) this.rewindColumns(event.step - 1);
    columns.step.push(event.step);
    for (const name of COLUMNS) columns[name].push(event[name] ?? null);
    if (columns.step.length > MOST) this.thin();
    this.last = event;
  }

  on_run_start(event) {
    this.started = event;
    this.ended = this.preview = null;
    this.notices = [];
  }

  on_run_end(event) {
    this.ended = event;
    this.preview = null;
  }

  on_sigma_bands(event) {
    this.bands.first ??= event;
    this.bands.recent = [...this.bands.recent, event].slice(-RECENT_BANDS);
  }

  on_evaluation(event) {
    this.evaluations = replaced(this.evaluations, event);
  }

  on_checkpoint(event) {
    this.checkpoints = replaced(this.checkpoints, event);
  }

  on_validation(event) {
    this.validations = replaced(this.validations, event);
    this.preview = null;
  }

  on_preview(event) {
    this.preview = event;
  }

  on_step_skipped(event) {
    this.notices.push(event);
  }

  on_render_failed(event) {
    this.notices.push(event);
  }

  on_render_smaller(event) {
    this.notices.push(event);
  }

  /** What comes again takes the place of what came after it the first time. */
  rewind(step) {
    this.rewindColumns(step);
    const before = (event) => event.step <= step;
    this.evaluations = this.evaluations.filter(before);
    this.checkpoints = this.checkpoints.filter(before);
    this.validations = this.validations.filter(before);
    this.bands.recent = this.bands.recent.filter(before);
    if (!this.bands.recent.length) this.bands.first = null;
  }

  rewindColumns(step) {
    let length = this.columns.step.length;
    while (length && this.columns.step[length - 1] > step) length -= 1;
    this.columns.step.length = length;
    for (const name of COLUMNS) this.columns[name].length = length;
  }

  /** Make one point of each two. */
  thin() {
    const later = (column) => column.filter((_, place) => place % 2);
    const merges = { loss: mean, seconds: mean, memory_gib: Math.max };
    for (const name of COLUMNS) {
      const column = this.columns[name];
      const merge = merges[name];
      this.columns[name] = merge
        ? later(column.map((value, place) => (place % 2 ? merged(column[place - 1], value, merge) : value)))
        : later(column);
    }
    this.columns.step = later(this.columns.step);
  }

  /** Losses by noise level at first and of late, at the middle of each band. */
  get bandCurves() {
    const first = this.bands.first?.losses ?? [];
    const x = first.map((_, band) => (band + 0.5) / first.length);
    const late = first.map((_, band) => {
      const parts = this.bands.recent.filter((event) => event.counts[band]);
      const count = parts.reduce((sum, event) => sum + event.counts[band], 0);
      return count ? parts.reduce((sum, event) => sum + event.losses[band] * event.counts[band], 0) / count : null;
    });
    return [x, first, late];
  }
}

/** A running mean that begins at the first value; gaps stay gaps. */
export function smoothed(values, weight) {
  let sum = 0;
  let share = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = sum * weight + value * (1 - weight);
    share = share * weight + (1 - weight);
    return sum / share;
  });
}

function replaced(events, event) {
  return [...events.filter((one) => one.step !== event.step), event];
}

function mean(a, b) {
  return (a + b) / 2;
}

function merged(a, b, merge) {
  if (a === null) return b;
  return b === null ? a : merge(a, b);
}
