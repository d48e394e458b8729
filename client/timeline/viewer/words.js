"use strict";
// What there is to say of a place in the plot, in lines of plain text. Nothing here knows of a page.

const UNITS = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["B", 1]];
const WAITS_TOLD = 3;
const INCIDENTS_TOLD = 4;

function figures(value) {
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1);
}

function bytesText(size) {
  const unit = UNITS.find(([, bytes]) => size >= bytes);
  return unit ? `${figures(size / unit[1])} ${unit[0]}` : "0";
}

function durationText(micros) {
  if (micros < 1000) return `${figures(micros)} µs`;
  if (micros < 1e6) return `${figures(micros / 1000)} ms`;
  if (micros < 120e6) return `${(micros / 1e6).toFixed(2)} s`;
  return `${figures(micros / 60e6)} min`;
}

/** Return an instant since the beginning, with as many decimals as tell it from others a step away. */
function instantText(micros, step) {
  const decimals = Math.min(6, Math.max(0, Math.ceil(6 - Math.log10(Math.max(1, step)))));
  return `${(micros / 1e6).toFixed(decimals)} s`;
}

function clockText(history, instant) {
  return new Date(history.begin_ms + instant / 1000).toISOString().replace("T", " ").slice(0, 23);
}

/** Return the next of 1, 2, 5, 10, 20, … times a power of ten. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((factor) => factor * power >= value * (1 - 1e-9)) * power;
}

/** Return round values between two, about so many of them. */
function ticks(begin, end, count) {
  const step = roundUp((end - begin) / count);
  const first = Math.ceil(begin / step - 1e-9);
  const last = Math.floor(end / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => (first + index) * step);
}

function byteTicks(top, count) {
  const wanted = Math.max(1, top / count);
  const unit = UNITS.find(([, bytes]) => wanted >= bytes)[1];
  const step = Math.ceil(roundUp(wanted / unit)) * unit;
  return Array.from({ length: Math.floor(top / step) + 1 }, (_, index) => index * step);
}

/** Return who waited at an instant, and what for. */
function waitLines(history, instant) {
  const then = history.waits.filter((wait) => wait.begin <= instant && instant < wait.end);
  const told = then.slice(0, WAITS_TOLD).map((wait) => `waiting: ${waitText(wait)}`);
  return then.length > WAITS_TOLD ? [...told, `and ${then.length - WAITS_TOLD} more wait`] : told;
}

function waitText(wait) {
  const number = wait.ticket ? `ticket ${wait.ticket}, ` : "";
  const lasts = durationText(wait.end - wait.begin);
  return `${number}${wait.name}, ${wait.outcome === "waiting" ? `for ${lasts} so far` : `${wait.outcome} after ${lasts}`}`;
}

function describeWait(wait) {
  return [waitText(wait), wait.asked, wait.answered && wait.answered !== wait.asked ? wait.answered : ""].filter(Boolean);
}

/** Return who holds what under a track at an instant, and why it came to that. */
function describeTrack(history, track, instant) {
  const index = lastAt(track.device.at, instant);
  if (index < 0 || !track.states[index]) return [track.name, "holds nothing then", ...waitLines(history, instant)];
  let first = index;
  while (first > 0 && track.states[first - 1] === track.states[index]) first -= 1;
  const next = track.states.findIndex((state, later) => later > index && state !== track.states[index]);
  const until = next < 0 ? history.length_us : track.device.at[next];
  const since = track.device.at[first];
  const lines = [
    track.name,
    `${track.states[index]}, from ${instantText(since, 1000)} for ${durationText(until - since)}`,
    `${bytesText(track.device.values[index])} on the device, ${bytesText(track.host.values[index])} set aside on the host`,
  ];
  if (track.why[index]) lines.push(`why: ${track.why[index]}`);
  if (track.cause[index]) lines.push(`for whom: ${track.cause[index]}`);
  if (next >= 0) lines.push(`then ${track.states[next] || "gone"}: ${track.cause[next] || track.why[next]}`);
  return [...lines, ...waitLines(history, instant)];
}

/** Return what a piece of a coarse picture stands for. */
function describePiece(track, where, begin, end) {
  const changes = track[where].count(begin, end);
  if (changes < 2) return [];
  return [
    `${changes} changes in ${durationText(end - begin)}: ${bytesText(track[where].mean(begin, end))} in the mean, ` +
      `${bytesText(track[where].most(begin, end))} at most; zoom in to see them`,
  ];
}

/** Return what the device as a whole has at an instant. */
function describeDevice(history, instant) {
  const lent = history.lent.value(instant);
  const held = history.held.value(instant);
  const lines = [
    `${bytesText(Math.max(0, history.capacity_bytes - lent - held))} free`,
    `${bytesText(lent)} lent of ${bytesText(history.capacity_bytes)}, ${bytesText(held)} held`,
  ];
  if (history.outside.at.length) lines.push(`${bytesText(history.outside.value(instant))} in use outside of leases`);
  return [...lines, ...waitLines(history, instant)];
}

/** Return what is on the host as a whole at an instant. */
function describeHost(history, instant) {
  return [
    `${bytesText(history.height.host.value(instant))} set aside on the host`,
    `${bytesText(history.files.value(instant))} in the arena's files, of ${bytesText(history.host_budget_bytes)} allowed`,
  ];
}

function describeStage(stage) {
  return [stage.label, `from ${instantText(stage.begin, 1000)} for ${durationText(stage.end - stage.begin)}`];
}

const KIND_WORDS = { ticket_refused: "refused", phase_refused: "phase refused", phase_entered: "phase entered" };

function describeIncidents(incidents) {
  const lines = incidents.slice(0, INCIDENTS_TOLD).flatMap((incident) => {
    const kind = KIND_WORDS[incident.kind] ?? incident.kind.replaceAll("_", " ");
    return [`${kind}${incident.name ? `: ${incident.name}` : ""} at ${instantText(incident.at, 100)}`, incident.why];
  });
  const more = incidents.length - INCIDENTS_TOLD;
  return (more > 0 ? [...lines, `and ${more} more here; zoom in to see them`] : lines).filter(Boolean);
}
