// What lies over the picture as ordinary page elements: names and badges, scale bars, curtain, overview, read-out.

import { layerOf } from "./state.js";
import { fit, roundLength, toCanvas, toPane } from "./view.js";

const OVERVIEW_PX = 150;
const SCALE_PX = 160;

export class Overlays {
  constructor(app) {
    this.app = app;
    this.panes = document.getElementById("panes");
    this.overview = document.getElementById("overview");
    this.divider = document.getElementById("divider");
    this.position = document.getElementById("position");
    this.values = document.getElementById("values");
    this.zoom = document.getElementById("zoom");
    this.cross = element("i", "cross");
    this.dragOverview();
    this.dragDivider();
  }

  show(panes) {
    this.panes.replaceChildren(...panes.map((pane) => this.pane(pane)), this.cross);
    this.showOverview(panes);
    const { state } = this.app;
    this.divider.hidden = state.mode !== "swipe";
    this.divider.style.left = `${100 * state.swipe}%`;
    this.divider.setAttribute("aria-valuenow", String(Math.round(100 * state.swipe)));
    const zoom = state.views[0].zoom;
    this.zoom.textContent = zoom >= 1 ? `${tidy(100 * zoom, 0)} %` : `${tidy(100 * zoom, zoom < 0.1 ? 2 : 1)} %`;
  }

  pane(pane) {
    const box = element("div", "pane");
    Object.assign(box.style, { left: `${pane.left}px`, top: `${pane.top}px`, width: `${pane.width}px`, height: `${pane.height}px` });
    const both = pane.layers.length > 1;
    pane.layers.forEach((layer, index) => box.append(this.tag(layer, both && index === 1 ? "tag right" : "tag", index, both || pane.name)));
    box.append(this.scaleBar(pane));
    return box;
  }

  tag(layer, className, index, pane) {
    const tag = element("div", className);
    const second = pane === true ? index === 1 : pane === "right";
    tag.append(element("span", `key ${second ? "key-b" : "key-a"}`), element("span", "", layer.name));
    if (layer.kind === "generated") tag.append(element("em", "badge", "synthetic"));
    if (!layer.sections.includes(this.app.state.section)) tag.append(element("small", "", "does not have this section"));
    return tag;
  }

  scaleBar(pane) {
    const { pixel_um: pixel } = this.app.manifest;
    const um = roundLength((Math.min(SCALE_PX, pane.width / 3) / pane.view.zoom) * pixel);
    const bar = element("div", "scale", um >= 1000 ? `${tidy(um / 1000, 3)} mm` : `${tidy(um, 4)} µm`);
    bar.style.width = `${(um / pixel) * pane.view.zoom}px`;
    bar.dataset.um = String(um);
    return bar;
  }

  // A pane of the whole canvas in the corner, drawn while the view shows only a part of it.
  overviewPane() {
    const { manifest, state, height: stageHeight, width: stageWidth } = this.app;
    const [pane] = this.app.panes();
    const shown = Math.max(pane.width / (manifest.width * state.views[0].zoom), pane.height / (manifest.height * state.views[0].zoom));
    const small = stageWidth < 480 || stageHeight < 360;
    const seen = pane.width / state.views[0].zoom >= manifest.width && pane.height / state.views[0].zoom >= manifest.height;
    this.hasOverview = !small && !seen && Number.isFinite(shown);
    if (!this.hasOverview) return null;
    const scale = OVERVIEW_PX / Math.max(manifest.width, manifest.height);
    const size = { width: Math.max(12, Math.round(manifest.width * scale)), height: Math.max(12, Math.round(manifest.height * scale)) };
    const at = { left: 12, top: stageHeight - size.height - 12 };
    const view = fit([0, manifest.height, 0, manifest.width], size, 1);
    return { name: "overview", ...at, ...size, view, mode: "single", layers: [this.app.layers()[0]], plain: true };
  }

  showOverview(panes) {
    const pane = this.overviewPane();
    this.overview.hidden = !pane;
    if (!pane) return;
    const { style } = this.overview;
    Object.assign(style, { left: `${pane.left}px`, top: `${pane.top}px`, width: `${pane.width}px`, height: `${pane.height}px` });
    [...this.overview.children].forEach((mark, index) => {
      const of = panes[index];
      mark.hidden = !of || (index > 0 && this.app.state.linked);
      if (mark.hidden) return;
      const reach = { x: of.width / 2 / of.view.zoom, y: of.height / 2 / of.view.zoom };
      const one = toPane(pane.view, of.view.x - reach.x, of.view.y - reach.y, pane);
      const other = toPane(pane.view, of.view.x + reach.x, of.view.y + reach.y, pane);
      const size = { width: Math.max(5, other.x - one.x), height: Math.max(5, other.y - one.y) };
      const middle = { x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 };
      const [left, top] = [middle.x - size.width / 2, middle.y - size.height / 2];
      Object.assign(mark.style, { left: `${left}px`, top: `${top}px`, width: `${size.width}px`, height: `${size.height}px` });
    });
  }

  // Position and raw values under the pointer; a cross at the same place of the other pane.
  showPointer(pointer) {
    const { app } = this;
    const { manifest, state } = app;
    this.cross.hidden = true;
    if (!pointer) {
      this.position.textContent = "–";
      this.values.textContent = "";
      return;
    }
    const panes = app.panes();
    const index = app.paneAt(pointer.x, pointer.y);
    const pane = panes[index];
    const at = toCanvas(pane.view, pointer.x - pane.left, pointer.y - pane.top, pane);
    const um = [at.x, at.y].map((value) => tidy(value * manifest.pixel_um, 1));
    this.position.textContent = `x ${tidy(Math.floor(at.x), 0)}  y ${tidy(Math.floor(at.y), 0)} px  ·  ${um[0]}, ${um[1]} µm`;
    this.values.textContent = this.words(at);
    const other = panes[1 - index];
    if (!other || state.mode !== "side") return;
    const there = toPane(other.view, at.x, at.y, other);
    if (there.x < 0 || there.y < 0 || there.x > other.width || there.y > other.height) return;
    this.cross.hidden = false;
    Object.assign(this.cross.style, { left: `${other.left + there.x}px`, top: `${other.top + there.y}px` });
  }

  // Raw values at a canvas position: "DAPI 120 | 98", "~" where a coarser level stands in for the pixel itself.
  words(at) {
    const { app } = this;
    const { store } = app.renderer;
    const read = (layer, channel) => app.renderer.plane(layer, app.state, channel).value(store, at.x, at.y);
    const parts = app.state.stains.filter((stain) => stain.on).map((stain) => {
      const values = app.layers().map((layer) => {
        const number = layer.channels.indexOf(stain.name);
        const found = number < 0 || !layer.sections.includes(app.state.section) ? null : read(layer, number);
        return found ? `${found.level ? "~" : ""}${found.value}` : "–";
      });
      return `${stain.name} ${values.join(" | ")}`;
    });
    const map = layerOf(app.manifest, app.state.map);
    const found = map ? read(map, app.state.mapChannel) : null;
    if (found && found.value > 0) {
      const [low, high] = map.ranges[app.state.mapChannel];
      const value = low + ((found.value - 1) / 254) * (high - low);
      parts.push(`${map.name} ${Number(value.toPrecision(3))} ${map.unit}`.trim());
    }
    return parts.join("   ");
  }

  dragOverview() {
    const go = (event) => {
      const rect = this.overview.getBoundingClientRect();
      const pane = this.overviewPane();
      if (!pane) return;
      const at = toCanvas(pane.view, event.clientX - rect.left, event.clientY - rect.top, pane);
      this.app.goTo(at.x, at.y);
    };
    this.overview.addEventListener("pointerdown", (event) => {
      this.overview.setPointerCapture(event.pointerId);
      go(event);
    });
    this.overview.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) go(event);
    });
  }

  dragDivider() {
    const to = (share) => this.app.set({ swipe: Math.min(1, Math.max(0, share)) });
    this.divider.addEventListener("pointerdown", (event) => this.divider.setPointerCapture(event.pointerId));
    this.divider.addEventListener("pointermove", (event) => {
      const rect = this.app.stage.getBoundingClientRect();
      if (event.buttons & 1) to((event.clientX - rect.left) / rect.width);
    });
    this.divider.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
      if (!step) return;
      event.stopPropagation();
      event.preventDefault();
      to(this.app.state.swipe + step);
    });
  }
}

export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function tidy(value, digits) {
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}
