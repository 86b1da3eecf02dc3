// The app: state, panes and drawing. Controls and input call its methods; every change goes through `set`.

import { Controls } from "./controls.js";
import { listen } from "./input.js";
import { Overlays } from "./overlays.js";
import { Renderer } from "./render.js";
import { MOST_STAINS, activeStains, decode, encode, initialState, layerOf, maps } from "./state.js";
import { fit, hold, pan, toCanvas, zoomAt } from "./view.js";

const GAP_PX = 2;
const HASH_MS = 250;

class App {
  constructor(manifest) {
    this.manifest = manifest;
    this.state = initialState(manifest);
    this.stage = document.getElementById("stage");
    this.canvas = document.getElementById("picture");
    this.renderer = new Renderer(this.canvas, manifest, () => this.redraw());
    this.pointer = null;
    this.firstPaint = null; // milliseconds from the page's start to the first whole picture
    this.complete = false;
    this.frames = 0;
    this.resize();
    const placed = decode(location.hash, this.state, manifest);
    if (!placed) this.showRegion();
    this.controls = new Controls(this);
    this.overlays = new Overlays(this);
    listen(this.stage, this);
    new ResizeObserver(() => {
      this.resize();
      this.draw(); // at once: a canvas that was resized is blank
    }).observe(this.stage);
    addEventListener("hashchange", () => {
      if (location.hash.slice(1) === this.lastHash) return;
      decode(location.hash, this.state, manifest);
      this.set({});
    });
    this.canvas.addEventListener("webglcontextlost", () => {
      say("The graphics card dropped the picture. Reload the page to go on; the address keeps the view.");
    });
    this.set({});
  }

  // Change the state, then show it.
  set(change) {
    Object.assign(this.state, change);
    this.state.views = this.state.views.map((view) => hold(view, this.panes()[0], this.manifest));
    this.controls?.show();
    this.redraw();
    clearTimeout(this.hashTimer);
    this.hashTimer = setTimeout(() => {
      this.lastHash = encode(this.state);
      history.replaceState(null, "", `#${this.lastHash}`);
    }, HASH_MS);
  }

  redraw() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.asked = false;
    const panes = this.panes();
    const overview = this.overlays?.overviewPane();
    this.complete = this.renderer.draw(this.state, overview ? [...panes, overview] : panes, this.ratio);
    this.frames += 1;
    this.overlays?.show(panes);
    this.overlays?.showPointer(this.pointer);
    const { store } = this.renderer;
    this.controls?.showLoading(store.pending, store.problem);
    if (this.complete && this.firstPaint === null) this.firstPaint = performance.now();
  }

  resize() {
    this.ratio = Math.min(2, window.devicePixelRatio || 1);
    const { clientWidth, clientHeight } = this.stage;
    this.width = Math.max(2, clientWidth);
    this.height = Math.max(2, clientHeight);
    this.canvas.width = Math.round(this.width * this.ratio);
    this.canvas.height = Math.round(this.height * this.ratio);
  }

  layers() {
    return [layerOf(this.manifest, this.state.left), layerOf(this.manifest, this.state.right)];
  }

  // The panes of the stage, in CSS pixels: two beside each other (or above, on a tall screen), or one.
  panes() {
    const [left, right] = this.layers();
    const [width, height] = [this.width, this.height];
    if (this.state.mode !== "side") {
      const [layers, mode] = left === right ? [[left], "single"] : [[left, right], this.state.mode];
      return [{ name: "left", left: 0, top: 0, width, height, view: this.state.views[0], mode, layers }];
    }
    const tall = height > 1.15 * width;
    const size = tall ? { width, height: (height - GAP_PX) / 2 } : { width: (width - GAP_PX) / 2, height };
    const shift = tall ? { left: 0, top: size.height + GAP_PX } : { left: size.width + GAP_PX, top: 0 };
    return [
      { name: "left", left: 0, top: 0, ...size, view: this.state.views[0], mode: "single", layers: [left] },
      { name: "right", ...shift, ...size, view: this.state.views[1], mode: "single", layers: [right] },
    ];
  }

  paneAt(x, y) {
    const at = this.panes().findIndex((p) => x >= p.left && y >= p.top && x < p.left + p.width && y < p.top + p.height);
    return Math.max(0, at);
  }

  // Change the view of one pane, and with it the other's while they are linked.
  look(index, change) {
    const panes = this.panes();
    const views = [...this.state.views];
    views[index] = change(views[index], panes[Math.min(index, panes.length - 1)]);
    if (this.state.linked || this.state.mode !== "side") views[1 - index] = views[index];
    this.set({ views });
  }

  panBy(index, dx, dy) {
    this.look(index, (view) => pan(view, dx, dy));
  }

  // Zoom by a factor about a point of the stage (default: the pane's middle).
  zoomBy(index, factor, x, y) {
    this.look(index, (view, pane) => {
      const [px, py] = x === undefined ? [pane.width / 2, pane.height / 2] : [x - pane.left, y - pane.top];
      return zoomAt(view, factor, px, py, pane, this.manifest);
    });
  }

  showBox(box) {
    const view = fit(box, this.panes()[0]);
    this.set({ views: [view, view] });
  }

  showAll() {
    this.showBox([0, this.manifest.height, 0, this.manifest.width]);
  }

  // Go to what both layers cover, or else to what the second one does.
  showRegion() {
    const [one, other] = this.layers().map((layer) => layer.box);
    const common = [Math.max(one[0], other[0]), Math.min(one[1], other[1]), Math.max(one[2], other[2]), Math.min(one[3], other[3])];
    this.showBox(common[0] < common[1] && common[2] < common[3] ? common : other);
  }

  goTo(x, y) {
    this.look(0, (view) => ({ ...view, x, y }));
  }

  link(linked) {
    const [first] = this.state.views;
    this.set({ linked, views: linked ? [first, first] : this.state.views });
  }

  swap() {
    this.set({ left: this.state.right, right: this.state.left });
  }

  stepSection(step) {
    const numbers = this.manifest.sections.map(({ number }) => number);
    const at = numbers.indexOf(this.state.section) + step;
    if (at >= 0 && at < numbers.length) this.set({ section: numbers[at] });
  }

  toggleOutlines() {
    if (this.manifest.nuclei) this.set({ outlines: !this.state.outlines });
  }

  nextMap() {
    const ids = ["", ...maps(this.manifest).map((layer) => layer.id)];
    this.set({ map: ids[(ids.indexOf(this.state.map) + 1) % ids.length], mapChannel: 0 });
  }

  toggleStain(stain) {
    if (!stain.on) {
      const shown = activeStains(this.state);
      if (shown.length >= MOST_STAINS) shown[0].on = false;
    }
    stain.on = !stain.on;
    this.set({});
  }

  // Brightness windows from the tiles on screen: of the first layer that has the stain.
  autoWindows() {
    for (const stain of activeStains(this.state)) {
      const pane = this.panes()[0];
      const counts = new Uint32Array(256);
      for (const layer of this.layers()) {
        const number = layer.channels.indexOf(stain.name);
        if (number < 0) continue;
        const plane = this.renderer.plane(layer, this.state, number);
        for (let i = 0; i < 80; i += 1) for (let j = 0; j < 80; j += 1) {
          const at = toCanvas(pane.view, ((i + 0.5) / 80) * pane.width, ((j + 0.5) / 80) * pane.height, pane);
          const found = plane.value(this.renderer.store, at.x, at.y);
          if (found) counts[found.value] += 1;
        }
        if (counts.some((count) => count > 0)) break;
      }
      const total = counts.reduce((sum, count) => sum + count, 0);
      if (!total) continue;
      const quantile = (share) => {
        let sum = 0;
        return counts.findIndex((count) => (sum += count) >= share * total);
      };
      const [low, high] = [quantile(0.01), quantile(0.997)];
      Object.assign(stain, { low: Math.min(low, 250), high: Math.min(255, Math.max(high, low + 5)) });
    }
    this.set({});
  }

  togglePanel() {
    const hidden = document.body.classList.toggle("no-panel");
    document.getElementById("panel-toggle").setAttribute("aria-pressed", String(!hidden));
  }

  help() {
    const dialog = document.getElementById("keys");
    if (dialog.open) dialog.close();
    else dialog.showModal();
  }

  // The pointer is over a point of the stage, or (null, null) has left it.
  pointAt(x, y) {
    this.pointer = x === null ? null : { x, y };
    this.overlays.showPointer(this.pointer);
  }
}

function say(words) {
  const message = document.getElementById("message");
  message.textContent = words;
  message.hidden = false;
}

try {
  const answer = await fetch("/manifest.json");
  if (!answer.ok) throw new Error(`the server answered ${answer.status} instead of the list of layers`);
  window.viewer = new App(await answer.json()); // within reach of the console
} catch (error) {
  say(`The viewer cannot start: ${error.message}`);
  throw error;
}
