// Everything that the view depends on, as one plain object, and its short form in the address.

export const MODES = ["side", "overlay", "swipe", "difference"];
export const MOST_STAINS = 4; // shown at once: one for each channel of a texture
const COLOURS = ["#4f9dff", "#ffb454", "#ff5d8f", "#5fe08a", "#b58cff", "#4fe0e0", "#f2f2f2"];

export function layerOf(manifest, id) {
  return manifest.layers.find((layer) => layer.id === id) || null;
}

export function images(manifest) {
  return manifest.layers.filter((layer) => layer.kind !== "map");
}

export function maps(manifest) {
  return manifest.layers.filter((layer) => layer.kind === "map");
}

export function activeStains(state) {
  return state.stains.filter((stain) => stain.on).slice(0, MOST_STAINS);
}

export function initialState(manifest) {
  const shown = images(manifest);
  const left = shown.find((layer) => layer.kind === "real") || shown[0];
  const right = shown.find((layer) => layer.kind === "generated" && layer !== left) || shown.find((layer) => layer !== left) || left;
  const only = manifest.stains.length === 1;
  return {
    mode: shown.length > 1 ? "side" : "overlay",
    left: left.id,
    right: right.id,
    section: (right.sections.find((number) => left.sections.includes(number)) ?? left.sections[0]),
    stains: manifest.stains.map(({ name, window }, index) => ({
      name, on: index < MOST_STAINS, colour: only ? "#f2f2f2" : COLOURS[index % COLOURS.length], low: window[0], high: window[1],
    })),
    differenceStain: 0,
    opacity: 0.5,
    swipe: 0.5,
    gain: 2,
    outlines: false,
    map: "",
    mapChannel: 0,
    mapOpacity: 0.55,
    linked: true,
    views: [{ x: 0, y: 0, zoom: 0 }, { x: 0, y: 0, zoom: 0 }], // centre in canvas pixels, CSS pixels a canvas pixel
  };
}

const round = (value, digits) => String(Number(value.toFixed(digits)));

export function encode(state) {
  const view = ({ x, y, zoom }) => [round(x, 2), round(y, 2), round(zoom, 6)].join("_");
  const stain = (s) => [encodeURIComponent(s.name), s.on ? 1 : 0, s.colour.slice(1), s.low, s.high].join("_");
  const parts = {
    mode: state.mode,
    left: state.left,
    right: state.right,
    section: state.section,
    at: view(state.views[0]),
    ...(state.linked ? {} : { other: view(state.views[1]) }),
    stains: state.stains.map(stain).join(","),
    difference: state.differenceStain,
    opacity: round(state.opacity, 3),
    swipe: round(state.swipe, 3),
    gain: round(state.gain, 2),
    outlines: state.outlines ? 1 : 0,
    ...(state.map ? { map: state.map, channel: state.mapChannel, mapopacity: round(state.mapOpacity, 3) } : {}),
  };
  return Object.entries(parts).map(([name, value]) => `${name}=${value}`).join("&");
}

// Put what an address says into the state; what does not fit this manifest is left out. Returns whether it held a place.
export function decode(hash, state, manifest) {
  const said = Object.fromEntries(hash.replace(/^#/, "").split("&").map((part) => {
    const at = part.indexOf("=");
    return [part.slice(0, at), part.slice(at + 1)];
  }));
  const number = (name, low, high) => {
    const value = said[name] === undefined ? NaN : Number(said[name]);
    return Number.isFinite(value) && value >= low && value <= high ? value : null;
  };
  if (MODES.includes(said.mode)) state.mode = said.mode;
  for (const side of ["left", "right"]) {
    if (images(manifest).some((layer) => layer.id === said[side])) state[side] = said[side];
  }
  if (manifest.sections.some((section) => String(section.number) === said.section)) state.section = Number(said.section);
  if (maps(manifest).some((layer) => layer.id === said.map)) {
    state.map = said.map;
    state.mapChannel = Math.trunc(number("channel", 0, layerOf(manifest, said.map).channels.length - 1) ?? 0);
    state.mapOpacity = number("mapopacity", 0, 1) ?? state.mapOpacity;
  }
  state.opacity = number("opacity", 0, 1) ?? state.opacity;
  state.swipe = number("swipe", 0, 1) ?? state.swipe;
  state.gain = number("gain", 0.5, 16) ?? state.gain;
  state.differenceStain = Math.trunc(number("difference", 0, state.stains.length - 1) ?? 0);
  if (said.outlines !== undefined) state.outlines = said.outlines === "1" && Boolean(manifest.nuclei);
  for (const words of (said.stains || "").split(",")) {
    const [name, on, colour, low, high] = words.split("_").length >= 5 ? splitStain(words) : [];
    const stain = state.stains.find((one) => one.name === name);
    const bounds = [Number(low), Number(high)];
    if (!stain || !/^[0-9a-f]{6}$/i.test(colour) || !(bounds[0] >= 0 && bounds[1] <= 255 && bounds[0] < bounds[1])) continue;
    Object.assign(stain, { on: on === "1", colour: `#${colour.toLowerCase()}`, low: bounds[0], high: bounds[1] });
  }
  const views = [said.at, said.other].map((words) => (words || "").split("_").map(Number));
  const placed = (view) => view.length === 3 && view.every(Number.isFinite) && view[2] > 0;
  if (!placed(views[0])) return false;
  state.linked = !placed(views[1]);
  state.views = [views[0], state.linked ? views[0] : views[1]].map(([x, y, zoom]) => ({ x, y, zoom }));
  return true;
}

// A stain's name may itself hold the separator: the last four parts are its settings.
function splitStain(words) {
  const parts = words.split("_");
  let name = parts.slice(0, -4).join("_");
  try {
    name = decodeURIComponent(name);
  } catch {
    name = "";
  }
  return [name, ...parts.slice(-4)];
}
