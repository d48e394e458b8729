"use strict";
// The plot on a canvas: from top to bottom stages, the device, what is outside, the host, waits, incidents, and the whole run.

const LEFT = 84;
const RIGHT_MARGIN = 14;
const TEXT = '12px system-ui, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif';
const THEME = [
  "paper", "ink", "faint", "grid", "limit", "band", "band-2", "band-3", "band-4", "outside", "wait", "refused", "waiting", "phase",
  "paused", "resumed", "recalled", "other", "hatch", "veil",
];
const LANES = [
  { name: "paused", kinds: new Set(["paused"]), colour: "paused" },
  { name: "resumed", kinds: new Set(["resumed"]), colour: "resumed" },
  { name: "recalled", kinds: new Set(["recalled", "spilled"]), colour: "recalled" },
  { name: "refused", kinds: new Set(["ticket_refused", "phase_refused", "spill_failed", "copy_failed"]), colour: "refused" },
  { name: "other", kinds: null, colour: "other" },
];
const BANDS = ["band", "band-2", "band-3", "band-4"];
const LANE_HEIGHT = 15;
const WAIT_HEIGHT = 9;

function themeOf(element) {
  const style = getComputedStyle(element);
  return Object.fromEntries(THEME.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** Return a colour for each track: a hue for each session, a shade for each of its tags. */
function coloursOf(tracks, hues) {
  const sessions = new Map();
  return tracks.map((track) => {
    const known = sessions.get(track.session) ?? { hue: sessions.size % hues.length, tags: 0 };
    sessions.set(track.session, known);
    known.tags += 1;
    return hues[known.hue][(known.tags - 1) % hues[known.hue].length];
  });
}

function stageNamesOf(history) {
  return [...new Set(history.stages.map((stage) => stage.name))];
}

function laneOf(incident) {
  const found = LANES.findIndex((lane) => lane.kinds?.has(incident.kind));
  return found < 0 ? LANES.length - 1 : found;
}

/** Return where everything is on a canvas of this width; `panels` from top to bottom. */
function layoutOf(history, width) {
  const lanes = LANES.map((_, lane) => lane).filter((lane) => history.incidents.some((one) => laneOf(one) === lane));
  const heights = [
    ["stages", history.stages.length ? 22 : 0, 0],
    ["device", 290, 14],
    ["outside", history.outside.at.length ? 46 : 0, 22],
    ["host", 120, 22],
    ["waits", history.waitRows * WAIT_HEIGHT, 22],
    ["incidents", lanes.length * LANE_HEIGHT, 14],
    ["axis", 22, 6],
    ["run", 52, 18],
  ];
  const panels = {};
  let bottom = 2;
  for (const [name, height, gap] of heights) {
    if (!height) continue;
    panels[name] = { top: bottom + gap, height, bottom: bottom + gap + height };
    bottom = panels[name].bottom;
  }
  return { panels, lanes, left: LEFT, right: Math.max(LEFT + 50, width - RIGHT_MARGIN), width, height: bottom + 24 };
}

/** Return a small tile to fill areas with: hatched for what is idle, dotted for what is on its way. */
function tile(context, draw, ratio) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 8 * ratio;
  const inner = canvas.getContext("2d");
  inner.scale(ratio, ratio);
  draw(inner);
  const pattern = context.createPattern(canvas, "repeat");
  pattern.setTransform(new DOMMatrix().scale(1 / ratio));
  return pattern;
}

function tilesOf(context, theme, ratio) {
  const hatched = (inner) => {
    inner.strokeStyle = theme.hatch;
    inner.lineWidth = 2.2;
    inner.stroke(new Path2D("M-2 2L2 -2M0 8L8 0M6 10L10 6"));
  };
  const dotted = (inner) => {
    inner.fillStyle = theme.hatch;
    for (const [x, y] of [[2, 2], [6, 6]]) inner.fill(new Path2D(`M${x - 1.4} ${y}a1.4 1.4 0 1 0 2.8 0a1.4 1.4 0 1 0 -2.8 0`));
  };
  return { idle: tile(context, hatched, ratio), moving: tile(context, dotted, ratio) };
}

class Drawing {
  constructor(context, history, ratio) {
    this.context = context;
    this.history = history;
    this.ratio = ratio;
    this.colours = coloursOf(history.tracks, history.hues);
  }

  /** Draw what is between two instants, and the whole run below; `shown` says what is pointed at. */
  draw(layout, theme, view, shown) {
    Object.assign(this, { layout, theme, view, shown, tiles: tilesOf(this.context, theme, this.ratio) });
    const { context } = this;
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, layout.width, layout.height);
    context.font = TEXT;
    this.stacks = {
      device: stacked(this.history, "device", view.begin, view.end, this.columns),
      host: stacked(this.history, "host", view.begin, view.end, this.columns),
    };
    this.stages();
    this.stack("device", this.deviceTop, "device");
    this.capacity();
    if (layout.panels.outside) this.outside();
    this.stack("host", Math.max(...this.stacks.host.tops, 1) * 1.15, "host");
    if (layout.panels.waits) this.waits();
    if (layout.panels.incidents) this.incidents();
    this.axis(layout.panels.axis.top, view);
    this.run();
  }

  get columns() {
    return Math.max(1, Math.floor(this.layout.right - this.layout.left));
  }

  get deviceTop() {
    return Math.max(this.history.capacity_bytes, this.history.peak_lent_bytes) * 1.1;
  }

  x(instant, view = this.view) {
    const { left, right } = this.layout;
    return left + ((instant - view.begin) / (view.end - view.begin)) * (right - left);
  }

  /** Return the same place on a whole pixel of the screen, so that neighbours meet without a seam. */
  snapped(instant, view = this.view) {
    return Math.round(this.x(instant, view) * this.ratio) / this.ratio;
  }

  instant(x) {
    const { left, right } = this.layout;
    return this.view.begin + ((x - left) / (right - left)) * (this.view.end - this.view.begin);
  }

  text(words, x, y, colour, align = "left") {
    this.context.textAlign = align;
    this.context.fillStyle = colour;
    this.context.fillText(words, x, y);
  }

  line(x1, y1, x2, y2, colour, dash = []) {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.setLineDash(dash);
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
    context.stroke();
    context.setLineDash([]);
  }

  stages() {
    const { panels, left, right } = this.layout;
    if (!panels.stages) return;
    const names = stageNamesOf(this.history);
    let drawnTo = -1;
    for (const stage of this.history.stages) {
      if (stage.end <= this.view.begin || stage.begin >= this.view.end) continue;
      const from = Math.max(left, this.snapped(stage.begin));
      const to = Math.min(right, this.snapped(stage.end));
      if (to <= drawnTo) continue;
      drawnTo = to;
      this.context.fillStyle = this.theme[BANDS[names.indexOf(stage.name) % BANDS.length]];
      for (const panel of [panels.stages, panels.device, panels.host]) {
        this.context.fillRect(from, panel.top, Math.max(1, to - from), panel.height);
      }
      this.context.fillStyle = this.theme.paper;
      this.context.fillRect(from, panels.stages.top, 1, panels.stages.height);
      const label = [stage.label, stage.name].find((words) => this.context.measureText(words).width < to - from - 8);
      if (label) this.text(label, (from + to) / 2, panels.stages.top + 15, this.theme.ink, "center");
    }
  }

  bytesAxis(panel, top, name) {
    const { left, right } = this.layout;
    for (const value of byteTicks(top, Math.max(2, Math.floor(panel.height / 32)))) {
      const y = Math.round(panel.bottom - (value / top) * panel.height) + 0.5;
      this.line(left, y, right, y, value ? this.theme.grid : this.theme.faint);
      this.text(bytesText(value), left - 8, y + 4, this.theme.faint, "right");
    }
    this.title(panel, name);
  }

  title(panel, name) {
    const { context } = this;
    context.save();
    context.translate(12, panel.top + panel.height / 2);
    context.rotate(-Math.PI / 2);
    context.font = `600 ${TEXT}`;
    this.text(name, 0, 4, this.theme.ink, "center");
    context.restore();
  }

  /** Draw the tracks on top of each other, the first at the bottom. */
  stack(where, top, name) {
    const panel = this.layout.panels[where];
    this.bytesAxis(panel, top, name);
    const stack = this.stacks[where];
    const edges = Float64Array.from(stack.edges, (edge) => this.snapped(edge));
    const below = new Float64Array(edges.length - 1);
    stack.layers.forEach((layer, index) => {
      const path = this.area(panel, top, edges, below, layer.values);
      this.context.globalAlpha = this.shown.track === null || this.shown.track === index ? 1 : 0.25;
      this.context.fillStyle = this.colours[index];
      this.context.fill(path);
      for (const kind of ["idle", "moving"]) {
        if (!layer[kind]) continue;
        this.context.fillStyle = this.tiles[kind];
        this.context.fill(this.area(panel, top, edges, below, layer[kind]));
      }
      this.context.globalAlpha = 1;
      for (let piece = 0; piece < below.length; piece += 1) below[piece] += layer.values[piece];
      if (stack.exact) this.seams(panel, top, edges, below, layer.values);
    });
    if (!stack.exact) this.tops(panel, top, edges, stack.tops);
  }

  /** Return what lies on top of a step function, without the pieces in which that is nothing. */
  area(panel, top, edges, below, values) {
    const path = new Path2D();
    const scale = panel.height / top;
    let piece = 0;
    while (piece < values.length) {
      const first = piece;
      while (piece < values.length && values[piece] > 0) piece += 1;
      if (piece > first) this.stairs(path, panel.bottom, scale, edges, below, values, first, piece);
      piece += 1;
    }
    return path;
  }

  stairs(path, bottom, scale, edges, below, values, first, end) {
    path.moveTo(edges[first], bottom - below[first] * scale);
    for (let piece = first; piece < end; piece += 1) {
      const high = bottom - (below[piece] + values[piece]) * scale;
      path.lineTo(edges[piece], high);
      path.lineTo(edges[piece + 1], high);
    }
    for (let piece = end - 1; piece >= first; piece -= 1) {
      const low = bottom - below[piece] * scale;
      path.lineTo(edges[piece + 1], low);
      path.lineTo(edges[piece], low);
    }
    path.closePath();
  }

  /** Draw a thin line on top of a layer, so that neighbours can be told apart without their colours. */
  seams(panel, top, edges, above, values) {
    const { context } = this;
    const scale = panel.height / top;
    context.fillStyle = this.theme.paper;
    for (let piece = 0; piece < values.length; piece += 1) {
      if (values[piece] * scale > 2) {
        context.fillRect(edges[piece], panel.bottom - above[piece] * scale, edges[piece + 1] - edges[piece], 0.7);
      }
    }
  }

  tops(panel, top, edges, tops) {
    const { context } = this;
    context.strokeStyle = this.theme.ink;
    context.lineWidth = 1;
    context.beginPath();
    tops.forEach((value, piece) => {
      const y = panel.bottom - (value / top) * panel.height;
      context.lineTo(edges[piece], y);
      context.lineTo(edges[piece + 1], y);
    });
    context.stroke();
  }

  capacity() {
    const { panels, left, right } = this.layout;
    const y = panels.device.bottom - (this.history.capacity_bytes / this.deviceTop) * panels.device.height;
    this.line(left, y, right, y, this.theme.limit, [6, 4]);
    this.text(`capacity ${bytesText(this.history.capacity_bytes)}`, right - 4, y - 5, this.theme.limit, "right");
  }

  outside() {
    const panel = this.layout.panels.outside;
    const { outside } = this.history;
    const top = Math.max(1, outside.values.reduce((most, value) => Math.max(most, value), 0)) * 1.15;
    this.bytesAxis(panel, top, "outside");
    const cut = cuts([outside], this.view.begin, this.view.end, this.columns);
    const edges = Float64Array.from(cut.edges, (edge) => this.snapped(edge));
    this.context.fillStyle = this.theme.outside;
    this.context.fill(this.area(panel, top, edges, new Float64Array(edges.length - 1), pieces(outside, cut)));
  }

  waits() {
    const panel = this.layout.panels.waits;
    this.text("waits", this.layout.left - 8, panel.top + panel.height / 2 + 4, this.theme.faint, "right");
    const drawnTo = new Float64Array(this.history.waitRows);
    for (const wait of this.history.waits) {
      if (wait.end < this.view.begin || wait.begin > this.view.end) continue;
      const from = Math.max(this.layout.left, this.x(wait.begin));
      const to = Math.max(from + 1.5, Math.min(this.layout.right, this.x(wait.end)));
      // Of what lies on one pixel one is drawn, but for those that were refused.
      if (to <= drawnTo[wait.row] && wait.outcome !== "refused") continue;
      drawnTo[wait.row] = to;
      this.context.fillStyle = this.theme[this.waitColour(wait)];
      this.context.fillRect(from, panel.top + wait.row * WAIT_HEIGHT + 1, to - from, WAIT_HEIGHT - 2);
    }
  }

  waitColour(wait) {
    if (wait.outcome !== "done") return wait.outcome;
    return wait.phase ? "phase" : "wait";
  }

  incidents() {
    const { panels, lanes, left, right } = this.layout;
    lanes.forEach((lane, row) => {
      const middle = panels.incidents.top + (row + 0.5) * LANE_HEIGHT;
      this.text(LANES[lane].name, left - 8, middle + 4, this.theme.faint, "right");
      this.line(left, Math.round(middle) + 0.5, right, Math.round(middle) + 0.5, this.theme.grid);
    });
    const drawnTo = new Float64Array(LANES.length);
    const first = lastAt(this.history.incidentTimes, this.view.begin - 1) + 1;
    for (let index = first; index < this.history.incidents.length; index += 1) {
      const incident = this.history.incidents[index];
      if (incident.at > this.view.end) break;
      const lane = laneOf(incident);
      const x = this.x(incident.at);
      if (x < drawnTo[lane] + 1) continue;
      drawnTo[lane] = x;
      this.glyph(lane, x, panels.incidents.top + (lanes.indexOf(lane) + 0.5) * LANE_HEIGHT);
    }
  }

  /** Draw the sign of a lane: down, up, a diamond, a cross, a dot; told apart by form as well as by colour. */
  glyph(lane, x, y) {
    const { context } = this;
    const forms = [
      `M${x - 4} ${y - 4}h8l-4 8z`,
      `M${x - 4} ${y + 4}h8l-4 -8z`,
      `M${x} ${y - 5}l4 5l-4 5l-4 -5z`,
      `M${x - 4} ${y - 4}l8 8M${x + 4} ${y - 4}l-8 8`,
      `M${x - 2.5} ${y}a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0 -5 0`,
    ];
    context.fillStyle = context.strokeStyle = this.theme[LANES[lane].colour];
    context.lineWidth = 2;
    if (lane === 3) context.stroke(new Path2D(forms[lane]));
    else context.fill(new Path2D(forms[lane]));
  }

  axis(y, view) {
    const span = view.end - view.begin;
    const marks = ticks(view.begin, view.end, Math.max(2, Math.floor(this.columns / 110)));
    for (const mark of marks) {
      const x = this.x(mark, view);
      this.line(x, y, x, y + 5, this.theme.faint);
      this.text(instantText(mark, roundUp(span / marks.length)), x, y + 18, this.theme.faint, "center");
    }
  }

  /** Return the whole run as areas, made once for a canvas. */
  runPaths(panel, whole) {
    const { edges, layers, tops } = stacked(this.history, "device", 0, whole.end, Math.floor(this.columns / 3));
    const places = Float64Array.from(edges, (edge) => this.snapped(edge, whole));
    const below = new Float64Array(tops.length);
    const paths = layers.map(({ values }) => {
      const path = this.area(panel, this.deviceTop, places, below, values);
      values.forEach((value, piece) => (below[piece] += value));
      return path;
    });
    return { layers: paths, edges: places, tops };
  }

  /** Draw the means of the whole run, above them the most, and which part of it is shown above. */
  run() {
    const { panels, left } = this.layout;
    const panel = panels.run;
    const whole = { begin: 0, end: this.history.length_us };
    this.wholeRun ??= this.runPaths(panel, whole);
    this.title(panel, "all");
    this.wholeRun.layers.forEach((path, index) => {
      this.context.fillStyle = this.colours[index];
      this.context.fill(path);
    });
    this.tops(panel, this.deviceTop, this.wholeRun.edges, this.wholeRun.tops);
    this.line(left, panel.bottom + 0.5, this.layout.right, panel.bottom + 0.5, this.theme.faint);
    const from = this.x(this.view.begin, whole);
    const width = Math.max(2, this.x(this.view.end, whole) - from);
    if (width < this.columns - 1) {
      this.context.fillStyle = this.theme.veil;
      this.context.fillRect(from, panel.top, width, panel.height);
    }
    this.context.strokeStyle = this.theme.ink;
    this.context.lineWidth = 1.5;
    this.context.strokeRect(from, panel.top, width, panel.height);
    this.axis(panel.bottom, whole);
  }

  /** Return which panel a place is in. */
  panelAt(y) {
    return Object.keys(this.layout.panels).find((name) => {
      const panel = this.layout.panels[name];
      return y >= panel.top - 2 && y <= panel.bottom + 2;
    });
  }

  /** Return the number of the track that is drawn at a place, and the piece of time that it stands for; null if none is. */
  trackAt(where, x, y) {
    const panel = this.layout.panels[where];
    const stack = this.stacks[where];
    const top = where === "device" ? this.deviceTop : Math.max(...stack.tops, 1) * 1.15;
    const piece = Math.min(stack.edges.length - 2, Math.max(0, lastAt(stack.edges, this.instant(x))));
    let above = 0;
    for (let index = 0; index < stack.layers.length; index += 1) {
      above += stack.layers[index].values[piece];
      if (stack.layers[index].values[piece] > 0 && y >= panel.bottom - (above / top) * panel.height) {
        return { index, begin: stack.edges[piece], end: stack.edges[piece + 1], exact: stack.exact };
      }
    }
    return null;
  }

  /** Return what there is to say of a place, in lines; none where nothing is. */
  linesAt(x, y) {
    const { history } = this;
    const instant = this.instant(x);
    const near = ((this.view.end - this.view.begin) / this.columns) * 5;
    switch (this.panelAt(y)) {
      case "stages": {
        const stage = history.stages.find((one) => one.begin <= instant && instant < one.end);
        return stage ? describeStage(stage) : [];
      }
      case "device":
      case "host":
        return this.linesOfStack(this.panelAt(y), x, y, instant);
      case "outside":
        return [`${bytesText(history.outside.value(instant))} in use outside of leases`];
      case "waits": {
        const row = Math.floor((y - this.layout.panels.waits.top) / WAIT_HEIGHT);
        const wait = history.waits.find((one) => one.row === row && one.begin - near <= instant && instant <= one.end + near);
        return wait ? describeWait(wait) : [];
      }
      case "incidents": {
        const lane = this.layout.lanes[Math.floor((y - this.layout.panels.incidents.top) / LANE_HEIGHT)];
        return describeIncidents(this.incidentsNear(instant, near).filter((incident) => laneOf(incident) === lane));
      }
      default:
        return [];
    }
  }

  linesOfStack(where, x, y, instant) {
    const found = this.trackAt(where, x, y);
    if (!found) return where === "device" ? describeDevice(this.history, instant) : describeHost(this.history, instant);
    const track = this.history.tracks[found.index];
    const coarse = found.exact ? [] : describePiece(track, where, found.begin, found.end);
    return coarse.length ? [track.name, ...coarse, ...waitLines(this.history, instant)] : describeTrack(this.history, track, instant);
  }

  incidentsNear(instant, near) {
    const times = this.history.incidentTimes;
    return this.history.incidents.slice(lastAt(times, instant - near - 1e-3) + 1, lastAt(times, instant + near) + 1);
  }
}
