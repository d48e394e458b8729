"use strict";
// What is embedded, as step functions over time, and what of them there is to see between two instants.
// Times are microseconds since the history begins. Nothing here knows of a page.

/** Return the sums of differences. */
function summed(differences) {
  const values = new Float64Array(differences.length);
  let sum = 0;
  for (let index = 0; index < values.length; index += 1) values[index] = sum += differences[index];
  return values;
}

/** Return the index of the last value that is not greater than the wanted one; -1 if there is none. */
function lastAt(sorted, wanted) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= wanted) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Return the area under steps from the first one to each of them: bytes times microseconds. */
function areas(at, values) {
  const sums = new Float64Array(at.length);
  for (let index = 1; index < at.length; index += 1) {
    sums[index] = sums[index - 1] + values[index - 1] * (at[index] - at[index - 1]);
  }
  return sums;
}

class Steps {
  constructor(at, values) {
    this.at = at;
    this.values = values;
    this.sums = areas(at, values);
  }

  /** Return the value at an instant; 0 before the first step. */
  value(instant) {
    const index = lastAt(this.at, instant);
    return index < 0 ? 0 : this.values[index];
  }

  /** Return the area from the first step to an instant. */
  area(instant) {
    const index = lastAt(this.at, instant);
    return index < 0 ? 0 : this.sums[index] + this.values[index] * (instant - this.at[index]);
  }

  /** Return how many steps begin after one instant and not after another. */
  count(begin, end) {
    return lastAt(this.at, end) - lastAt(this.at, begin);
  }

  mean(begin, end) {
    return (this.area(end) - this.area(begin)) / (end - begin);
  }

  /** Return the most between two instants, the value at the first one included. */
  most(begin, end) {
    let most = this.value(begin);
    for (let index = lastAt(this.at, begin) + 1; index < this.at.length && this.at[index] < end; index += 1) {
      most = Math.max(most, this.values[index]);
    }
    return most;
  }
}

/** Return one tag of one session: what it had on the device and on the host, and how much of it paused or moving. */
function trackOf(told, words) {
  const at = summed(told.at);
  const device = Float64Array.from(told.device);
  return {
    session: told.session,
    tag: told.tag,
    name: told.tag ? `${told.session}/${told.tag}` : told.session,
    device: new Steps(at, device),
    host: new Steps(at, Float64Array.from(told.host)),
    idle: new Steps(at, Float64Array.from(told.idle)),
    moving: new Steps(at, Float64Array.from(told.moving)),
    states: told.state.map((index) => words[index]),
    why: told.why.map((index) => words[index]),
    cause: told.cause.map((index) => words[index]),
    most: device.reduce((most, value) => Math.max(most, value), 0),
  };
}

/** Return the sum of step functions. */
function total(series) {
  const changes = series.flatMap((one) =>
    Array.from(one.at, (at, index) => [at, one.values[index] - (index ? one.values[index - 1] : 0)]),
  );
  changes.sort((one, other) => one[0] - other[0]);
  const at = [];
  const values = [];
  let sum = 0;
  for (const [instant, change] of changes) {
    sum += change;
    if (at.length && at[at.length - 1] === instant) values[values.length - 1] = sum;
    else {
      at.push(instant);
      values.push(sum);
    }
  }
  return new Steps(Float64Array.from(at), Float64Array.from(values));
}

/** Put waits into rows in which none overlaps another, as far as there are rows. */
function inRows(waits, rowsMost) {
  const free = [];
  for (const wait of waits) {
    let row = free.findIndex((until) => until <= wait.begin);
    if (row < 0) row = free.length < rowsMost ? free.length : rowsMost - 1;
    free[row] = Math.max(free[row] ?? 0, wait.end);
    wait.row = row;
  }
  return free.length;
}

const WAIT_ROWS_MOST = 4;

/** Return what is embedded in the page, ready to be looked at. */
function historyOf(told) {
  const words = told.words;
  const tracks = told.tracks.map((track) => trackOf(track, words));
  const steps = (one, name) => new Steps(summed(one.at), Float64Array.from(one[name]));
  const waits = told.waits.map(([ticket, session, tag, phase, begin, end, outcome, asked, answered]) => ({
    ticket,
    phase: words[phase],
    name: words[phase] ? `phase ${words[phase]}` : words[tag] ? `${words[session]}/${words[tag]}` : words[session],
    begin,
    end,
    outcome: words[outcome],
    asked: words[asked],
    answered: words[answered],
  }));
  const waitRows = inRows(waits, WAIT_ROWS_MOST);
  const incidents = told.incidents.map(([at, kind, session, tag, why]) => ({
    at,
    kind: words[kind],
    name: words[tag] ? `${words[session]}/${words[tag]}` : words[session],
    why: words[why],
  }));
  return {
    ...told,
    tracks,
    waits,
    waitRows,
    incidents,
    incidentTimes: Float64Array.from(incidents, (incident) => incident.at),
    lent: steps(told.totals, "lent"),
    held: steps(told.totals, "held"),
    files: steps(told.totals, "files"),
    outside: steps(told.outside, "bytes"),
    height: { device: total(tracks.map((track) => track.device)), host: total(tracks.map((track) => track.host)) },
  };
}

/** Return where to cut a span: at every step, if these are few enough to be seen; else evenly. */
function cuts(series, begin, end, pieces) {
  const changes = series.reduce((sum, one) => sum + one.count(begin, end), 0);
  if (changes > 2 * pieces) {
    return { exact: false, edges: Float64Array.from({ length: pieces + 1 }, (_, k) => begin + ((end - begin) * k) / pieces) };
  }
  const inner = new Set();
  for (const one of series) {
    for (let index = lastAt(one.at, begin) + 1; index < one.at.length && one.at[index] < end; index += 1) {
      inner.add(one.at[index]);
    }
  }
  return { exact: true, edges: Float64Array.from([begin, ...[...inner].sort((one, other) => one - other), end]) };
}

/** Return the values of a series in each piece: exact ones, or means. */
function pieces(series, { exact, edges }) {
  const values = new Float64Array(edges.length - 1);
  let before = exact ? 0 : series.area(edges[0]);
  for (let index = 0; index < values.length; index += 1) {
    if (exact) values[index] = series.value(edges[index]);
    else {
      const after = series.area(edges[index + 1]);
      values[index] = Math.max(0, after - before) / (edges[index + 1] - edges[index]);
      before = after;
    }
  }
  return values;
}

/** Return the tracks on top of each other: of each what it has in each piece, and how much of that idle or moving. */
function stacked(history, where, begin, end, most) {
  const cut = cuts(history.tracks.map((track) => track[where]), begin, end, most);
  const layers = history.tracks.map((track) => ({
    values: pieces(track[where], cut),
    idle: where === "device" ? pieces(track.idle, cut) : null,
    moving: where === "device" ? pieces(track.moving, cut) : null,
  }));
  const tops = new Float64Array(cut.edges.length - 1);
  for (let index = 0; index < tops.length; index += 1) {
    tops[index] = history.height[where].most(cut.edges[index], cut.edges[index + 1]);
  }
  return { ...cut, layers, tops };
}
