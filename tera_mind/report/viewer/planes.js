// Which tiles of a layer a pane needs, and where each lies in the pane. All in double precision: at 100,000 px the
// graphics card's own numbers would be too coarse.

// One plane of a layer: a channel of its image, or the outlines of its nuclei.
export class Plane {
  constructor(layer, section, tilePx, channel, levels = layer.levels.length) {
    this.layer = layer;
    this.section = section;
    this.tilePx = tilePx;
    this.channel = channel; // a number, or "outline"
    this.levels = levels;
  }

  key(level, row, column) {
    return `${this.layer.id}/${this.channel}/${this.section}/${level}/${row}/${column}`;
  }

  url(level, row, column) {
    const place = `${encodeURIComponent(this.layer.id)}/${level}/${this.section}/${row}/${column}`;
    return this.channel === "outline" ? `/outline/${place}` : `/tile/${place}?stain=${this.channel}`;
  }

  // Canvas pixels a pixel of this level.
  step(level) {
    return this.layer.step_px * 2 ** level;
  }

  // The level whose pixels are closest to the screen's, not much finer.
  level(devicePxPerCanvasPx) {
    const wanted = Math.floor(Math.log2(1 / (devicePxPerCanvasPx * this.layer.step_px)) + 0.4);
    return Math.min(this.levels - 1, Math.max(0, wanted));
  }

  // Rows and columns of tiles that a window of the canvas {x0, y0, x1, y1} touches.
  *visible(level, window) {
    const [y0, , x0] = this.layer.box;
    const [height, width] = this.layer.levels[level];
    const size = this.step(level) * this.tilePx;
    const bound = (value, last) => Math.min(last, Math.max(0, value));
    const rows = Math.ceil(height / this.tilePx) - 1;
    const columns = Math.ceil(width / this.tilePx) - 1;
    const [top, bottom] = [(window.y0 - y0) / size, (window.y1 - y0) / size];
    const [left, right] = [(window.x0 - x0) / size, (window.x1 - x0) / size];
    if (bottom <= 0 || right <= 0 || top >= rows + 1 || left >= columns + 1) return;
    for (let row = bound(Math.floor(top), rows); row <= bound(Math.ceil(bottom) - 1, rows); row += 1) {
      for (let column = bound(Math.floor(left), columns); column <= bound(Math.ceil(right) - 1, columns); column += 1) {
        yield [row, column];
      }
    }
  }

  count(level, window) {
    let number = 0;
    for (const _ of this.visible(level, window)) number += 1;
    return number;
  }

  size(level, row, column) {
    const [height, width] = this.layer.levels[level];
    return [Math.min(this.tilePx, width - column * this.tilePx), Math.min(this.tilePx, height - row * this.tilePx)];
  }

  // Canvas rectangle of a tile. A level's last pixel may stand for less than a full step of the layer.
  rect(level, row, column) {
    const [y0, , x0] = this.layer.box;
    const step = this.step(level);
    const [width, height] = this.size(level, row, column);
    const [x, y] = [x0 + column * this.tilePx * step, y0 + row * this.tilePx * step];
    return { x0: x, y0: y, x1: x + width * step, y1: y + height * step };
  }

  // Tiles to draw, coarse ones first, from what is here; asks the store for what is not. Returns
  // {draw: [{tile, rect}], complete}.
  collect(store, level, window, urgency) {
    const chosen = new Map();
    const middle = [(window.x0 + window.x1) / 2, (window.y0 + window.y1) / 2];
    const reach = Math.hypot(window.x1 - window.x0, window.y1 - window.y0) || 1;
    let complete = true;
    const consider = (k, row, column) => {
      const key = this.key(k, row, column);
      const tile = store.look(key);
      if (tile) chosen.set(key, { tile, rect: this.rect(k, row, column), level: k });
      return tile;
    };
    for (const [row, column] of this.visible(level, window)) {
      if (consider(level, row, column)) continue;
      complete = false;
      const rect = this.rect(level, row, column);
      const off = Math.hypot((rect.x0 + rect.x1) / 2 - middle[0], (rect.y0 + rect.y1) / 2 - middle[1]) / reach;
      this.ask(store, level, row, column, urgency + off);
      for (let k = level + 1; k < this.levels; k += 1) {
        if (consider(k, row >> (k - level), column >> (k - level))) break;
      }
    }
    return { draw: [...chosen.values()].sort((one, other) => other.level - one.level), complete };
  }

  ask(store, level, row, column, priority) {
    const [width, height] = this.size(level, row, column);
    const slow = this.channel === "outline";
    store.want({ key: this.key(level, row, column), url: this.url(level, row, column), width, height, priority, slow });
  }

  // {value, level} of the finest tile here at a canvas position, or null.
  value(store, x, y) {
    const [y0, y1, x0, x1] = this.layer.box;
    if (x < x0 || y < y0 || x >= x1 || y >= y1) return null;
    for (let level = 0; level < this.levels; level += 1) {
      const [column, row] = [Math.floor((x - x0) / this.step(level)), Math.floor((y - y0) / this.step(level))];
      const tile = store.peek(this.key(level, Math.floor(row / this.tilePx), Math.floor(column / this.tilePx)));
      if (tile) {
        const at = (row % this.tilePx) * tile.width + (column % this.tilePx);
        return { value: tile.data ? tile.data[at] : 0, level };
      }
    }
    return null;
  }
}
