// Where a pane looks: centre in canvas pixels and zoom in CSS pixels a canvas pixel; panning and zooming as pure steps.

const CLOSEST = 64;

// The view that shows a box [y0, y1, x0, x1] whole in a pane.
export function fit([y0, y1, x0, x1], pane, margin = 0.94) {
  const zoom = margin * Math.min(pane.width / Math.max(1, x1 - x0), pane.height / Math.max(1, y1 - y0));
  return { x: (x0 + x1) / 2, y: (y0 + y1) / 2, zoom };
}

// The view after its content moved by (dx, dy) CSS pixels.
export function pan(view, dx, dy) {
  return { ...view, x: view.x - dx / view.zoom, y: view.y - dy / view.zoom };
}

// The view zoomed by a factor about a point (px, py) of the pane, which keeps its place.
export function zoomAt(view, factor, px, py, pane, canvas) {
  const farthest = fit([0, canvas.height, 0, canvas.width], pane, 0.5).zoom;
  const zoom = Math.min(CLOSEST, Math.max(farthest, view.zoom * factor));
  const [dx, dy] = [px - pane.width / 2, py - pane.height / 2];
  return { x: view.x + dx / view.zoom - dx / zoom, y: view.y + dy / view.zoom - dy / zoom, zoom };
}

// The view with its centre kept on the canvas and its zoom within bounds.
export function hold(view, pane, canvas) {
  const within = zoomAt(view, 1, pane.width / 2, pane.height / 2, pane, canvas);
  return { ...within, x: Math.min(canvas.width, Math.max(0, within.x)), y: Math.min(canvas.height, Math.max(0, within.y)) };
}

export function toCanvas(view, px, py, pane) {
  return { x: view.x + (px - pane.width / 2) / view.zoom, y: view.y + (py - pane.height / 2) / view.zoom };
}

export function toPane(view, x, y, pane) {
  return { x: (x - view.x) * view.zoom + pane.width / 2, y: (y - view.y) * view.zoom + pane.height / 2 };
}

// A round length that is at most `most` long: 1, 2 or 5 times a power of ten.
export function roundLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [5, 2, 1].map((times) => times * power).find((length) => length <= most);
}
