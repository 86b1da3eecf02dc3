// Pointer, wheel and keys on the picture, turned into steps of the app.

const KEY_PAN_PX = 90;

export function listen(stage, app) {
  const fingers = new Map(); // pointer -> {x, y}
  let held = null; // pane index where the drag began
  const place = (event) => {
    const rect = stage.getBoundingClientRect();
    return { x: event.clientX - rect.left, y: event.clientY - rect.top };
  };
  const spread = () => {
    const [one, other] = [...fingers.values()];
    return { distance: Math.hypot(one.x - other.x, one.y - other.y), x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 };
  };

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.target.closest("button, input, select, .divider, .overview")) return;
    const at = place(event);
    fingers.set(event.pointerId, at);
    stage.setPointerCapture(event.pointerId);
    if (fingers.size === 1) held = app.paneAt(at.x, at.y);
    stage.classList.add("dragging");
    stage.focus({ preventScroll: true });
  });
  stage.addEventListener("pointermove", (event) => {
    const at = place(event);
    app.pointAt(at.x, at.y);
    const before = fingers.get(event.pointerId);
    if (!before || held === null) return;
    if (fingers.size === 1) app.panBy(held, at.x - before.x, at.y - before.y);
    const old = fingers.size === 2 ? spread() : null;
    fingers.set(event.pointerId, at);
    if (old) {
      const now = spread();
      app.panBy(held, now.x - old.x, now.y - old.y);
      app.zoomBy(held, now.distance / Math.max(1, old.distance), now.x, now.y);
    }
  });
  const lift = (event) => {
    fingers.delete(event.pointerId);
    if (!fingers.size) stage.classList.remove("dragging");
  };
  stage.addEventListener("pointerup", lift);
  stage.addEventListener("pointercancel", lift);
  stage.addEventListener("pointerleave", () => app.pointAt(null, null));
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const at = place(event);
    const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
    const factor = Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0022));
    app.zoomBy(app.paneAt(at.x, at.y), Math.min(4, Math.max(0.25, factor)), at.x, at.y);
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => {
    if (event.target.closest("button, input, select, .divider, .overview")) return;
    const at = place(event);
    app.zoomBy(app.paneAt(at.x, at.y), event.shiftKey ? 0.5 : 2, at.x, at.y);
  });

  const keys = {
    ArrowLeft: () => app.panBy(0, KEY_PAN_PX, 0),
    ArrowRight: () => app.panBy(0, -KEY_PAN_PX, 0),
    ArrowUp: () => app.panBy(0, 0, KEY_PAN_PX),
    ArrowDown: () => app.panBy(0, 0, -KEY_PAN_PX),
    "+": () => app.zoomBy(0, 1.5),
    "=": () => app.zoomBy(0, 1.5),
    "-": () => app.zoomBy(0, 1 / 1.5),
    0: () => app.showAll(),
    r: () => app.showRegion(),
    1: () => app.set({ mode: "side" }),
    2: () => app.set({ mode: "overlay" }),
    3: () => app.set({ mode: "swipe" }),
    4: () => app.set({ mode: "difference" }),
    "[": () => app.stepSection(-1),
    "]": () => app.stepSection(1),
    x: () => app.swap(),
    l: () => app.link(!app.state.linked),
    n: () => app.toggleOutlines(),
    m: () => app.nextMap(),
    a: () => app.autoWindows(),
    p: () => app.togglePanel(),
    "?": () => app.help(),
  };
  document.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey || belongsToField(event)) return;
    event.preventDefault();
    act();
  });
}

// Whether a key means something to the control that has the focus: choices take letters, sliders take arrows.
function belongsToField({ target, key }) {
  const field = target.closest?.("input, select, dialog[open]");
  if (!field || key === "?") return false;
  return !(field.type === "checkbox" || (field.type === "range" && !key.startsWith("Arrow")));
}
