"use strict";
// The page: what is shown, and what wheel, pointer, keys and the address do to it.

const ZOOM_STEP = 1.35;
const SPAN_LEAST_US = 20;
const DRAG_LEAST_PX = 4;
const ADDRESS_AFTER_MS = 300;
const WAIT_WORDS = [
  ["wait", "waited until all was there"],
  ["phase", "a change of phase"],
  ["refused", "waited, and was refused"],
  ["waiting", "still waits"],
];

class Viewer {
  constructor(history) {
    this.history = history;
    this.canvas = document.getElementById("canvas");
    this.about = document.getElementById("about");
    this.cursor = document.getElementById("cursor");
    this.view = { begin: 0, end: history.length_us };
    this.shown = { track: null, cursor: null, drag: null };
    this.pinned = null;
    this.moving = null;
    this.waiting = 0;
    this.stale = false;
    this.measure();
    this.listen();
  }

  /** Fit the canvas to the window and the screen. */
  measure() {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.floor(this.canvas.parentElement.clientWidth);
    this.layout = layoutOf(this.history, width);
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(this.layout.height * ratio);
    this.canvas.style.height = `${this.layout.height}px`;
    this.drawing = new Drawing(this.canvas.getContext("2d"), this.history, ratio);
    this.theme = themeOf(document.documentElement);
    this.drawing.draw(this.layout, this.theme, this.view, this.shown);
  }

  /** Draw with the next frame, however often it is asked for until then. */
  refresh() {
    this.stale = true;
    this.point();
  }

  /** Say what is pointed at with the next frame; the plot stays as it is. */
  point() {
    this.waiting ||= requestAnimationFrame(() => {
      this.waiting = 0;
      if (this.stale) this.draw();
      else this.tell();
    });
  }

  draw() {
    this.stale = false;
    this.drawing.draw(this.layout, this.theme, this.view, this.shown);
    this.tell();
  }

  /** Show a span, cut to what there is, and have the address say so. */
  show(begin, end) {
    const { length_us: length } = this.history;
    const span = Math.min(length, Math.max(SPAN_LEAST_US, end - begin));
    const from = Math.min(Math.max(0, begin), length - span);
    this.view = { begin: from, end: from + span };
    this.refresh();
    // Browsers allow only so many changes of the address in a while.
    clearTimeout(this.addressing);
    this.addressing = setTimeout(() => this.writeAddress(), ADDRESS_AFTER_MS);
  }

  writeAddress() {
    const { begin, end } = this.view;
    const whole = end - begin >= this.history.length_us;
    const seconds = (instant) => (instant / 1e6).toFixed(6).replace(/\.?0+$/, "");
    const fragment = whole ? "" : `#from=${seconds(begin)}&to=${seconds(end)}`;
    history.replaceState(null, "", location.pathname + location.search + fragment);
  }

  zoom(factor, around) {
    const { begin, end } = this.view;
    const middle = around ?? (begin + end) / 2;
    this.show(middle - (middle - begin) * factor, middle + (end - middle) * factor);
  }

  move(share) {
    const { begin, end } = this.view;
    this.show(begin + share * (end - begin), end + share * (end - begin));
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.hover(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", () => this.cancel());
    canvas.addEventListener("pointerleave", () => this.leave());
    canvas.addEventListener("dblclick", () => this.show(0, this.history.length_us));
    canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.measure());
    window.addEventListener("hashchange", () => this.readAddress());
  }

  resize() {
    if (Math.floor(this.canvas.parentElement.clientWidth) !== this.layout.width) this.measure();
  }

  wheel(event) {
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.move(event.deltaX / 1000);
    else this.zoom(ZOOM_STEP ** (Math.sign(event.deltaY) * Math.min(2, Math.abs(event.deltaY) / 60)), this.drawing.instant(event.offsetX));
  }

  press(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    const onRun = this.drawing.panelAt(event.offsetY) === "run";
    this.moving = { x: event.offsetX, begin: this.view.begin, kind: onRun ? "run" : event.shiftKey ? "pan" : "select" };
    if (onRun) this.centre(event.offsetX);
  }

  hover(event) {
    this.pinned = null;
    this.shown.cursor = { x: event.offsetX, y: event.offsetY };
    const { moving } = this;
    const span = this.view.end - this.view.begin;
    if (moving?.kind === "select") this.shown.drag = [moving.x, event.offsetX];
    else if (moving?.kind === "run") this.centre(event.offsetX);
    else if (moving?.kind === "pan") {
      const begin = moving.begin - ((event.offsetX - moving.x) / this.drawing.columns) * span;
      this.show(begin, begin + span);
    }
    this.point();
  }

  release(event) {
    const { moving } = this;
    this.moving = null;
    this.shown.drag = null;
    if (moving?.kind === "select" && Math.abs(event.offsetX - moving.x) >= DRAG_LEAST_PX) {
      const ends = [moving.x, event.offsetX].map((x) => this.drawing.instant(x)).sort((one, other) => one - other);
      this.show(...ends);
    }
    this.point();
  }

  /** Give up a drag that became something else, such as a scroll by touch. */
  cancel() {
    this.moving = null;
    this.shown.drag = null;
    this.leave();
  }

  leave() {
    if (this.moving) return;
    this.shown.cursor = null;
    this.point();
  }

  /** Move the span that is shown to where the whole run is pointed at. */
  centre(x) {
    const { left, right } = this.layout;
    const middle = ((x - left) / (right - left)) * this.history.length_us;
    const half = (this.view.end - this.view.begin) / 2;
    this.show(middle - half, middle + half);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const far = event.shiftKey ? 0.5 : 0.1;
    const acts = {
      ArrowLeft: () => this.move(-far),
      ArrowRight: () => this.move(far),
      ArrowUp: () => this.zoom(1 / ZOOM_STEP, this.pinned?.instant),
      ArrowDown: () => this.zoom(ZOOM_STEP, this.pinned?.instant),
      "+": () => this.zoom(1 / ZOOM_STEP, this.pinned?.instant),
      "-": () => this.zoom(ZOOM_STEP, this.pinned?.instant),
      0: () => this.show(0, this.history.length_us),
      Home: () => this.show(0, this.history.length_us),
      n: () => this.step(1),
      p: () => this.step(-1),
      Escape: () => this.unpin(),
    };
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  /** Point at the next incident, or the one before, and bring it into view. */
  step(by) {
    const { incidents, incidentTimes, length_us: length } = this.history;
    if (!incidents.length) return;
    const now = this.pinned?.index ?? (by > 0 ? lastAt(incidentTimes, this.view.begin) : lastAt(incidentTimes, this.view.end) + 1);
    const index = Math.min(incidents.length - 1, Math.max(0, now + by));
    const instant = incidents[index].at;
    const span = this.view.end - this.view.begin;
    if (instant < this.view.begin || instant > this.view.end) this.show(instant - span / 2, Math.min(length, instant + span / 2));
    this.pinned = { index, instant, lines: describeIncidents([incidents[index]]) };
    this.point();
  }

  unpin() {
    this.pinned = null;
    this.shown.cursor = null;
    this.shown.track = null;
    this.refresh();
  }

  /** Say what is pointed at, beside it. */
  tell() {
    if (this.pinned) {
      const x = this.drawing.x(this.pinned.instant);
      this.shown.cursor = { x, y: this.layout.panels.device.top + 20 };
    }
    this.markCursor();
    const { cursor } = this.shown;
    const inside = cursor && cursor.x >= this.layout.left && cursor.x <= this.layout.right && !this.moving;
    const lines = !inside ? [] : (this.pinned?.lines ?? this.drawing.linesAt(cursor.x, cursor.y));
    this.about.hidden = !lines.length;
    if (!lines.length) return;
    const told = [...lines, clockText(this.history, this.pinned?.instant ?? this.drawing.instant(cursor.x))];
    this.about.replaceChildren(...told.map((line, index) => paragraph(line, index && index === told.length - 1 ? "faint" : "")));
    this.place(cursor);
  }

  /** Mark the instant that is pointed at, or the span that is dragged over. */
  markCursor() {
    const { cursor, drag } = this.shown;
    const { panels } = this.layout;
    const [from, to] = drag ? [...drag].sort((one, other) => one - other) : [cursor?.x, cursor?.x];
    this.cursor.hidden = from === undefined;
    this.cursor.style.left = `${from}px`;
    this.cursor.style.width = `${drag ? to - from : 0}px`;
    this.cursor.style.height = `${(panels.incidents ?? panels.waits ?? panels.host).bottom}px`;
  }

  /** Put what is said beside the pointer, where there is room. */
  place({ x, y }) {
    const { offsetWidth: width, offsetHeight: height } = this.about;
    const left = x + 16 + width > this.layout.width ? Math.max(0, x - 16 - width) : x + 16;
    this.about.style.left = `${left}px`;
    this.about.style.top = `${Math.max(0, Math.min(y + 14, this.layout.height - height))}px`;
  }

  /** Show what the address names: `from` and `to` in seconds, and `at` an instant on the track named by `on`. */
  readAddress() {
    const named = new URLSearchParams(location.hash.slice(1));
    const micros = (name) => (named.has(name) && Number.isFinite(Number(named.get(name))) ? Number(named.get(name)) * 1e6 : null);
    const [from, to, at] = ["from", "to", "at"].map(micros);
    if (from !== null || to !== null) this.show(from ?? 0, to ?? this.history.length_us);
    const track = this.history.tracks.find((one) => one.name === named.get("on"));
    if (at !== null && track) this.pinned = { instant: at, lines: describeTrack(this.history, track, at) };
    this.draw();
  }

  highlight(track) {
    this.shown.track = track;
    this.refresh();
  }
}

function paragraph(words, kind) {
  const made = document.createElement("p");
  made.textContent = words;
  made.className = kind;
  return made;
}

/** Tell what the colours are, the topmost first; a click keeps a tag in the light. */
function fillLegend(viewer, legend) {
  const { history, drawing } = viewer;
  let kept = null;
  const buttons = [];
  const sessions = [...new Set(history.tracks.map((track) => track.session))].reverse();
  for (const session of sessions) {
    const heading = document.createElement("h2");
    heading.textContent = session;
    legend.append(heading);
    history.tracks.map((track, index) => [track, index]).filter(([track]) => track.session === session).reverse().forEach(([track, index]) => {
      const button = entry(track, drawing.colours[index]);
      button.addEventListener("pointerenter", () => viewer.highlight(index));
      button.addEventListener("focus", () => viewer.highlight(index));
      for (const end of ["pointerleave", "blur"]) button.addEventListener(end, () => viewer.highlight(kept));
      button.addEventListener("click", () => {
        kept = kept === index ? null : index;
        for (const [one, of] of buttons) one.setAttribute("aria-pressed", String(of === kept));
        viewer.highlight(kept);
      });
      buttons.push([button, index]);
      legend.append(button);
    });
  }
  const key = document.createElement("h2");
  key.textContent = "how it is drawn";
  legend.append(key, sample("idle", "paused, still in place"), sample("moving", "leaving or arriving"));
  for (const [colour, words] of WAIT_WORDS) {
    if (history.waits.some((wait) => drawing.waitColour(wait) === colour)) legend.append(coloured(colour, words));
  }
  stageNamesOf(history).forEach((name, index) => legend.append(coloured(BANDS[index % BANDS.length], `stage: ${name}`)));
}

function coloured(colour, words) {
  const line = part("div", "key", "");
  const swatch = part("span", "swatch", "");
  swatch.style.background = `var(--${colour})`;
  line.append(swatch, part("span", "tag", words));
  return line;
}

function entry(track, colour) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  const swatch = part("span", "swatch", "");
  swatch.style.background = colour;
  button.append(swatch, part("span", "tag", track.tag || "–"), part("span", "most", bytesText(track.most)));
  button.title = `${track.name}: ${bytesText(track.most)} on the device at most`;
  return button;
}

function sample(kind, words) {
  const line = part("div", "key", "");
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 28;
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  for (const fill of ["#7d8898", tilesOf(context, themeOf(document.documentElement), 2)[kind]]) {
    context.fillStyle = fill;
    context.fillRect(0, 0, 14, 14);
  }
  line.append(canvas, part("span", "", words));
  return line;
}

function part(name, kind, words) {
  const made = document.createElement(name);
  made.className = kind;
  made.textContent = words;
  return made;
}

function begin() {
  const told = historyOf(JSON.parse(document.getElementById("data").textContent));
  const facts = [
    durationText(told.length_us),
    `from ${clockText(told, 0)} UTC`,
    `peak ${bytesText(told.peak_lent_bytes)} lent of ${bytesText(told.capacity_bytes)}`,
  ];
  if (!told.complete) facts.push("some of what happened is not in it");
  document.getElementById("facts").textContent = facts.join(" · ");
  const viewer = new Viewer(told);
  fillLegend(viewer, document.getElementById("legend"));
  viewer.readAddress();
  return viewer;
}
