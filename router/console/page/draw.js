// Elements made of data: text is always set as text, never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element; `parts` are elements or text. */
export function make(tag, attributes = {}, ...parts) {
  return fill(document.createElement(tag), attributes, parts);
}

function draw(tag, attributes = {}, ...parts) {
  return fill(document.createElementNS(SVG, tag), attributes, parts);
}

function fill(element, attributes, parts) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...parts.filter((part) => part !== null && part !== undefined));
  return element;
}

/** Change the text of an element only if it differs, so that nothing is laid out or read out again for nothing. */
export function say(element, text) {
  const words = text === null || text === undefined ? "" : String(text);
  if (element.textContent !== words) element.textContent = words;
}

/** Keep one child for each item, by key and in order: elements that stay keep focus and selection. */
export function keyed(parent, items, keyOf, begin, update) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = before.get(key);
    if (child === undefined) {
      child = begin(item);
      child.dataset.key = key;
    }
    before.delete(key);
    update(child, item);
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
  }
  for (const child of before.values()) child.remove();
}

/** A bar of stages; widths are set by script, for the page allows no inline styles. */
export function stack(lengths, names, describe) {
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const bar = make("div", { class: "stack", role: "img", "aria-label": describe });
  lengths.forEach((length, at) => {
    if (length <= 0 || total <= 0) return;
    const part = make("i", { class: `s${at}`, title: `${names[at].replace("_", " ")}: ${percent(length / total)}` });
    part.style.width = `${(100 * length) / total}%`;
    bar.append(part);
  });
  return bar;
}

/** A bar that is full to `share`, with a mark at `goal` if there is one. */
export function track(share, goal) {
  const bar = make("span", { class: "track", "aria-hidden": "true" }, make("i"));
  setTrack(bar, share, goal);
  return bar;
}

export function setTrack(bar, share, goal) {
  bar.firstElementChild.style.width = `${100 * Math.min(1, Math.max(0, share || 0))}%`;
  let mark = bar.querySelector("b");
  if (goal !== undefined && mark === null) bar.append((mark = make("b")));
  if (mark !== null && goal !== undefined) mark.style.left = `calc(${100 * goal}% - 1px)`;
}

/**
 * An hour of one class, a column a minute: requests kept, missed and refused below, attainment and its goal above them.
 * `minutes` is oldest first: {at, kept, missed, refused}.
 */
export function hour(minutes, goal, describe) {
  const most = Math.max(1, ...minutes.map((m) => m.kept + m.missed));
  const width = 60, height = 74, floor = 72, rise = 44;
  const picture = draw("svg", { class: "hour", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": describe });
  picture.append(draw("line", { class: "base", x1: 0, x2: width, y1: floor, y2: floor }));
  const line = [];
  minutes.forEach((minute, at) => {
    const all = minute.kept + minute.missed;
    if (all === 0) return;
    let top = floor;
    const column = draw("g", {}, draw("title", {}, `${time(minute.at)}: ${all} ended, ${percent(minute.kept / all)} kept, ${minute.refused} refused`));
    const parts = [["kept", minute.kept], ["lost", minute.missed - minute.refused], ["refused", minute.refused]];
    for (const [name, count] of parts) {
      const size = (rise * count) / most;
      if (size <= 0) continue;
      top -= size;
      column.append(draw("rect", { class: name, x: at + 0.12, width: 0.76, y: top.toFixed(2), height: size.toFixed(2) }));
    }
    picture.append(column);
    line.push([at + 0.5, high(minute.kept / all)]);
  });
  picture.append(draw("line", { class: "goal", x1: 0, x2: width, y1: high(goal), y2: high(goal) }));
  if (line.length > 0) {
    const points = line.length > 1 ? line : [[line[0][0] - 0.4, line[0][1]], [line[0][0] + 0.4, line[0][1]]];
    picture.append(draw("polyline", { class: "rate", points: points.map(([x, y]) => `${x},${y.toFixed(2)}`).join(" ") }));
  }
  return picture;

  function high(share) {
    return 3 + (1 - share) * 66;
  }
}

export function percent(share) {
  if (share === null || share === undefined) return "–";
  const value = 100 * share;
  return `${value === 100 ? "100" : value.toFixed(1)} %`;
}

export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

/** Milliseconds in the unit that reads best. */
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms >= 10000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  if (ms >= 100) return `${ms.toFixed(0)} ms`;
  return `${ms.toFixed(ms >= 10 ? 1 : 2)} ms`;
}

export function time(epoch_s) {
  return new Date(epoch_s * 1000).toLocaleTimeString([], { hour12: false });
}
