// Draws panes: for each, the grey values of its layers, then the picture made of them.

import { Plane } from "./planes.js";
import { COMPOSE_FRAGMENT, COMPOSE_VERTEX, TILE_FRAGMENT, TILE_VERTEX } from "./shaders.js";
import { activeStains, layerOf } from "./state.js";
import { TileStore } from "./tiles.js";

const MODES = { single: 0, overlay: 1, swipe: 2, difference: 3 };
const OUTLINE_PX = 1.6;
// from this many screen pixels a pixel on, pixels are shown as squares
const SQUARES_FROM = 3;

export class Renderer {
  constructor(canvas, manifest, changed) {
    const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false, powerPreference: "high-performance" });
    if (!gl) throw new Error("this browser offers no WebGL2, which the viewer needs; try a current Firefox or Chromium");
    this.gl = gl;
    this.manifest = manifest;
    this.store = new TileStore(gl, manifest.tile_px, changed);
    this.tileProgram = program(gl, TILE_VERTEX, TILE_FRAGMENT);
    this.composeProgram = program(gl, COMPOSE_VERTEX, COMPOSE_FRAGMENT);
    this.targets = new Map(); // pane -> {width, height, planes: [{texture, frame}]}
    gl.bindVertexArray(gl.createVertexArray());
    gl.disable(gl.DEPTH_TEST);
  }

  // Draw panes [{name, left, top, width, height (CSS px), view, mode, layers: [a, b?], plain}] of a state; `plain`
  // leaves out outlines and map. Returns whether every tile that is wanted was here.
  draw(state, panes, ratio) {
    const { gl, store } = this;
    store.begin();
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(0.02, 0.025, 0.035, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    let complete = true;
    panes.forEach((pane, order) => {
      complete = this.drawPane(state, pane, ratio, order) && complete;
    });
    store.end();
    return complete;
  }

  drawPane(state, pane, ratio, order) {
    const { gl } = this;
    const width = Math.max(1, Math.round(pane.width * ratio));
    const height = Math.max(1, Math.round(pane.height * ratio));
    const zoom = pane.view.zoom * ratio;
    const frame = { width, height, zoom, view: pane.view };
    frame.window = {
      x0: pane.view.x - width / 2 / zoom, x1: pane.view.x + width / 2 / zoom,
      y0: pane.view.y - height / 2 / zoom, y1: pane.view.y + height / 2 / zoom,
    };
    const target = this.target(pane.name, width, height);
    const stains = pane.mode === "difference" ? [state.stains[state.differenceStain]] : activeStains(state);
    const jobs = [[], [], []]; // planes of each texture, with the channel they fill
    pane.layers.forEach((layer, index) => {
      stains.forEach((stain, channel) => {
        const number = layer.channels.indexOf(stain.name);
        if (number >= 0) jobs[index].push({ plane: this.plane(layer, state, number), channel, urgency: 0 });
      });
    });
    const outlines = !pane.plain && state.outlines && this.outlinesShow(pane.view.zoom);
    if (outlines) pane.layers.forEach((layer, index) => {
      const plane = this.outlinePlane(layer, state);
      if (plane) jobs[2].push({ plane, channel: index, urgency: 3, smooth: true });
    });
    const map = pane.plain ? null : layerOf(this.manifest, state.map);
    if (map) jobs[2].push({ plane: this.plane(map, state, state.mapChannel), channel: 2, urgency: 2, squares: true });

    let complete = true;
    const share = this.store.slots / (3 * Math.max(1, jobs[0].length + jobs[1].length + jobs[2].length));
    gl.viewport(0, 0, width, height);
    jobs.forEach((planes, index) => {
      gl.bindFramebuffer(gl.FRAMEBUFFER, target.planes[index].frame);
      gl.colorMask(true, true, true, true);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      for (const job of planes) complete = this.drawPlane(job, frame, share, order) && complete;
    });
    gl.colorMask(true, true, true, true);
    this.compose(state, pane, frame, target, stains, outlines, ratio);
    return complete;
  }

  plane(layer, state, channel) {
    return new Plane(layer, state.section, this.manifest.tile_px, channel);
  }

  outlinePlane(layer, state) {
    const { nuclei } = this.manifest;
    if (!nuclei || !layer.channels.includes(nuclei.stain)) return null;
    return new Plane(layer, state.section, this.manifest.tile_px, "outline", Math.min(nuclei.levels, layer.levels.length));
  }

  // Whether nuclei are large enough on screen (CSS pixels) to be outlined.
  outlinesShow(zoom) {
    const { nuclei } = this.manifest;
    return Boolean(nuclei) && nuclei.diameter_px * zoom >= nuclei.least_screen_px;
  }

  drawPlane({ plane, channel, urgency, smooth, squares }, frame, share, order) {
    const { gl, store } = this;
    if (!plane.layer.sections.includes(plane.section)) return true;
    let level = plane.level(frame.zoom);
    while (level < plane.levels - 1 && plane.count(level, frame.window) > share) level += 1;
    const { draw, complete } = plane.collect(store, level, frame.window, urgency + order * 0.01);
    const last = plane.levels - 1; // the coarsest tile stands in for all others until they are here
    if (!smooth && !store.look(plane.key(last, 0, 0))) plane.ask(store, last, 0, 0, -1);

    gl.useProgram(this.tileProgram.program);
    const { uniforms } = this.tileProgram;
    gl.colorMask(channel === 0, channel === 1, channel === 2, channel === 3);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, store.texture);
    gl.uniform1i(uniforms.tiles, 0);
    gl.uniform1f(uniforms.tile_px, store.tilePx);
    const big = plane.step(level) * frame.zoom >= SQUARES_FROM;
    gl.uniform1i(uniforms.smooth_pixels, smooth || (!squares && !big) ? 1 : 0);
    for (const { tile, rect } of draw) {
      const [x0, y0] = clip(frame, rect.x0, rect.y0);
      const [x1, y1] = clip(frame, rect.x1, rect.y1);
      gl.uniform4f(uniforms.rect, x0, y0, x1, y1);
      gl.uniform2f(uniforms.size, tile.width, tile.height);
      gl.uniform1f(uniforms.slot, tile.slot);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    }
    return complete;
  }

  compose(state, pane, frame, target, stains, outlines, ratio) {
    const { gl } = this;
    const { program: compose, uniforms } = this.composeProgram;
    const left = Math.round(pane.left * ratio);
    const bottom = gl.drawingBufferHeight - Math.round(pane.top * ratio) - frame.height;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(left, bottom, frame.width, frame.height);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(left, bottom, frame.width, frame.height);
    gl.useProgram(compose);
    ["greys_a", "greys_b", "marks"].forEach((name, index) => {
      gl.activeTexture(gl.TEXTURE0 + index);
      gl.bindTexture(gl.TEXTURE_2D, target.planes[index].texture);
      gl.uniform1i(uniforms[name], index);
    });
    const { nuclei } = this.manifest;
    const numbers = {
      height: frame.height, opacity: state.opacity, split: state.swipe * frame.width, gain: state.gain, zoom: frame.zoom,
      line_px: outlines ? OUTLINE_PX * ratio : 0, rim: nuclei ? nuclei.rim : 0, per_px: nuclei ? nuclei.per_px : 1,
      map_opacity: state.mapOpacity,
    };
    for (const [name, value] of Object.entries(numbers)) gl.uniform1f(uniforms[name], value);
    gl.uniform1i(uniforms.mode, MODES[pane.mode]);
    gl.uniform1i(uniforms.second, pane.name === "right" ? 1 : 0);
    gl.uniform2f(uniforms.origin, left, bottom);
    const [a, b] = pane.layers;
    gl.uniform4fv(uniforms.box_a, screenBox(frame, a.box));
    gl.uniform4fv(uniforms.box_b, screenBox(frame, (b || a).box));
    gl.uniform4fv(uniforms.canvas, screenBox(frame, [0, this.manifest.height, 0, this.manifest.width]));
    const colours = new Float32Array(12);
    const windows = new Float32Array(8).fill(1);
    stains.forEach((stain, index) => {
      colours.set(rgb(stain.colour), 3 * index);
      windows.set([stain.low / 255, stain.high / 255], 2 * index);
    });
    gl.uniform3fv(uniforms["colours[0]"], colours);
    gl.uniform2fv(uniforms["windows[0]"], windows);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.disable(gl.SCISSOR_TEST);
  }

  // Three textures as large as the pane: grey values of its first and second layer, marks (outlines, map).
  target(name, width, height) {
    const { gl } = this;
    let target = this.targets.get(name);
    if (target && target.width === width && target.height === height) return target;
    if (target) for (const { texture, frame } of target.planes) {
      gl.deleteTexture(texture);
      gl.deleteFramebuffer(frame);
    }
    const planes = [0, 1, 2].map(() => {
      const texture = gl.createTexture();
      gl.activeTexture(gl.TEXTURE0);
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA8, width, height);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
      const frame = gl.createFramebuffer();
      gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
      return { texture, frame };
    });
    target = { width, height, planes };
    this.targets.set(name, target);
    return target;
  }
}

function clip({ width, height, zoom, view }, x, y) {
  return [((x - view.x) * zoom * 2) / width, (-(y - view.y) * zoom * 2) / height];
}

function screenBox({ width, height, zoom, view }, [y0, y1, x0, x1]) {
  return [
    (x0 - view.x) * zoom + width / 2, (y0 - view.y) * zoom + height / 2,
    (x1 - view.x) * zoom + width / 2, (y1 - view.y) * zoom + height / 2,
  ];
}

export function rgb(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
}

function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const uniforms = {};
  for (let index = 0; index < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); index += 1) {
    const { name } = gl.getActiveUniform(made, index);
    uniforms[name] = gl.getUniformLocation(made, name);
  }
  return { program: made, uniforms };
}
