// Toolbar, side panel and footer: ordinary controls that show the state and change it.

import { element } from "./overlays.js";
import { images, layerOf, maps } from "./state.js";

const $ = (id) => document.getElementById(id);

export class Controls {
  constructor(app) {
    this.app = app;
    const { manifest } = app;
    for (const id of ["left", "right"]) {
      $(id).replaceChildren(...[["real", "real"], ["generated", "synthetic"]].map(([kind, words]) => {
        const group = Object.assign(element("optgroup"), { label: words });
        fill(group, images(manifest).filter((layer) => layer.kind === kind).map((layer) => [layer.id, layer.name]));
        return group;
      }).filter((group) => group.children.length));
      $(id).addEventListener("change", (event) => app.set({ [id]: event.target.value }));
    }
    for (const button of document.querySelectorAll("button[data-mode]")) {
      button.addEventListener("click", () => app.set({ mode: button.dataset.mode }));
    }
    const clicks = {
      swap: () => app.swap(),
      link: () => app.link(!app.state.linked),
      "fit-all": () => app.showAll(),
      "fit-region": () => app.showRegion(),
      help: () => app.help(),
      "panel-toggle": () => app.togglePanel(),
      "section-down": () => app.stepSection(-1),
      "section-up": () => app.stepSection(1),
      auto: () => app.autoWindows(),
    };
    for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
    for (const [id, name] of [["opacity", "opacity"], ["gain", "gain"], ["map-opacity", "mapOpacity"]]) {
      $(id).addEventListener("input", (event) => app.set({ [name]: Number(event.target.value) }));
    }
    $("section").addEventListener("input", (event) => app.set({ section: manifest.sections[Number(event.target.value)].number }));
    $("outlines").addEventListener("change", () => app.toggleOutlines());
    $("difference-stain").addEventListener("change", (event) => app.set({ differenceStain: Number(event.target.value) }));
    $("map").addEventListener("change", (event) => app.set({ map: event.target.value, mapChannel: 0 }));
    $("map-channel").addEventListener("change", (event) => app.set({ mapChannel: Number(event.target.value) }));
    this.build(manifest);
  }

  build(manifest) {
    const sections = $("sections");
    sections.hidden = manifest.sections.length < 2;
    Object.assign($("section"), { min: 0, max: manifest.sections.length - 1 });
    fill($("difference-stain"), manifest.stains.map(({ name }, index) => [index, name]));
    $("map-section").hidden = !maps(manifest).length;
    fill($("map"), [["", "none"], ...maps(manifest).map((layer) => [layer.id, layer.name])]);
    this.stains = this.app.state.stains.map((stain) => this.stainRow(stain));
    $("stains").replaceChildren(...this.stains.map(({ row }) => row));
    $("outlines").disabled = !manifest.nuclei;
    $("about").replaceChildren(...manifest.layers.flatMap((layer) => {
      const [y0, y1, x0, x1] = layer.box;
      const size = `${(x1 - x0).toLocaleString("en")} × ${(y1 - y0).toLocaleString("en")} px`;
      const what = { real: "real", generated: "synthetic", map: "map" }[layer.kind];
      return [element("dt", "", layer.name), element("dd", "", [what, size, layer.note].filter(Boolean).join(" · "))];
    }));
  }

  stainRow(stain) {
    const { app } = this;
    const row = element("div", "stain");
    const id = `stain-${app.state.stains.indexOf(stain)}`;
    const on = Object.assign(element("input"), { type: "checkbox", id });
    const name = Object.assign(element("label", "", stain.name), { htmlFor: id });
    const colour = Object.assign(element("input"), { type: "color", title: `Colour of ${stain.name}` });
    const numbers = element("small");
    const range = element("div", "range");
    const sliders = ["low", "high"].map((end) => {
      const slider = Object.assign(element("input"), { type: "range", min: 0, max: 255, step: 1 });
      slider.setAttribute("aria-label", `${stain.name}: ${end === "low" ? "shown as black below" : "shown as full above"}`);
      slider.addEventListener("input", () => {
        const value = Number(slider.value);
        if (end === "low") stain.low = Math.min(value, stain.high - 1);
        else stain.high = Math.max(value, stain.low + 1);
        app.set({});
      });
      return slider;
    });
    colour.setAttribute("aria-label", `Colour of ${stain.name}`);
    on.addEventListener("change", () => app.toggleStain(stain));
    colour.addEventListener("input", () => {
      stain.colour = colour.value;
      app.set({});
    });
    range.append(element("i"), ...sliders);
    row.append(on, name, numbers, colour, range);
    return { stain, row, on, colour, numbers, range, sliders };
  }

  show() {
    const { state, manifest } = this.app;
    document.body.dataset.mode = images(manifest).length > 1 ? state.mode : "single";
    for (const button of document.querySelectorAll("button[data-mode]")) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === state.mode));
    }
    $("left").value = state.left;
    $("right").value = state.right;
    $("link").setAttribute("aria-pressed", String(state.linked));
    $("link").textContent = state.linked ? "Linked" : "Unlinked";
    $("link").disabled = state.mode !== "side";
    const at = manifest.sections.findIndex(({ number }) => number === state.section);
    const section = manifest.sections[at];
    $("section").value = at;
    const depth = section.z_um === null ? "" : ` · ${Number(section.z_um.toFixed(1))} µm`;
    $("section-name").textContent = `${at + 1} / ${manifest.sections.length}`;
    $("section-name").title = $("section").title = `${section.name}${depth}`;
    $("section").setAttribute("aria-valuetext", section.name);
    $("section-down").disabled = at === 0;
    $("section-up").disabled = at === manifest.sections.length - 1;
    $("opacity").value = state.opacity;
    $("gain").value = state.gain;
    const [first, second] = this.app.layers();
    $("opacity-name").textContent = `${Math.round(100 * state.opacity)} %`;
    $("difference-stain").value = state.differenceStain;
    const full = Math.round(255 / state.gain);
    $("difference-low").textContent = `−${full}`;
    $("difference-high").textContent = `+${full}`;
    $("difference-words").textContent = `Grey levels, ${second.name} minus ${first.name}. Red: ${second.name} is brighter; blue: darker.`;
    for (const { stain, on, colour, numbers, range, sliders } of this.stains) {
      on.checked = stain.on;
      colour.value = stain.colour;
      numbers.textContent = `${stain.low} – ${stain.high}`;
      sliders[0].value = stain.low;
      sliders[1].value = stain.high;
      range.style.setProperty("--low", stain.low / 255);
      range.style.setProperty("--high", stain.high / 255);
      range.style.setProperty("--colour", stain.colour);
    }
    this.showOutlines();
    this.showMap();
  }

  showOutlines() {
    const { state, manifest, renderer } = this.app;
    $("outlines").checked = state.outlines;
    const words = () => {
      if (!manifest.nuclei) return "Needs a brain store with a DAPI stain: its brightness sets the threshold.";
      if (state.outlines && !renderer.outlinesShow(state.views[0].zoom)) return "Zoom in: nuclei are too small to outline here.";
      return `By watershed in ${manifest.nuclei.stain}, one threshold for all layers, from the real tissue.`;
    };
    $("outlines-hint").textContent = words();
    $("outlines-hint").classList.toggle("strong", state.outlines && !renderer.outlinesShow(state.views[0].zoom));
  }

  showMap() {
    const { state, manifest } = this.app;
    const map = layerOf(manifest, state.map);
    $("map").value = state.map;
    $("map-opacity").value = state.mapOpacity;
    $("map-channel-row").hidden = !map || map.channels.length < 2;
    $("map-legend").hidden = !map;
    if (!map) return;
    fill($("map-channel"), map.channels.map((name, index) => [index, name]));
    $("map-channel").value = state.mapChannel;
    const [low, high] = map.ranges[state.mapChannel];
    $("map-low").textContent = Number(low.toPrecision(3));
    $("map-high").textContent = Number(high.toPrecision(3));
    $("map-unit").textContent = map.unit;
  }

  showLoading(pending, problem) {
    $("loading").textContent = problem || (pending ? `loading ${pending}` : "");
    $("loading").classList.toggle("problem", Boolean(problem));
  }
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => Object.assign(element("option", "", text), { value })));
}
