// Tiles on the graphics card and on their way there. A slot is a layer of one array texture; the tile that was
// looked at longest ago makes room. What leaves the screen before it arrived is not waited for.

const PARALLEL = 12;
const PARALLEL_SLOW = 3; // outlines take the server a while: they must not hold up the pictures
const RETRY_MS = 15000;
const MOST_SLOTS = 1024;

export class TileStore {
  // changed(): called when a tile has arrived or failed
  constructor(gl, tilePx, changed) {
    this.gl = gl;
    this.tilePx = tilePx;
    this.changed = changed;
    this.slots = Math.min(MOST_SLOTS, gl.getParameter(gl.MAX_ARRAY_TEXTURE_LAYERS));
    this.free = Array.from({ length: this.slots }, (_, index) => this.slots - 1 - index);
    this.tiles = new Map(); // key -> {slot, data, width, height, frame} or {failed, until}
    this.wanted = new Map(); // key -> request
    this.flying = new Map(); // key -> AbortController
    this.frame = 0;
    this.problem = "";
    this.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, this.texture);
    gl.texStorage3D(gl.TEXTURE_2D_ARRAY, 1, gl.R8, tilePx, tilePx, this.slots);
    for (const [name, value] of [
      [gl.TEXTURE_MIN_FILTER, gl.LINEAR],
      [gl.TEXTURE_MAG_FILTER, gl.LINEAR],
      [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE],
      [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE],
    ]) gl.texParameteri(gl.TEXTURE_2D_ARRAY, name, value);
  }

  get pending() {
    return this.flying.size + this.wanted.size;
  }

  // Start to draw a frame: what is looked up from here on counts as seen.
  begin() {
    this.frame += 1;
    this.wanted.clear();
  }

  // The tile, or null where it is not here.
  look(key) {
    const tile = this.tiles.get(key);
    if (!tile || tile.failed) return null;
    tile.frame = this.frame;
    return tile;
  }

  // The tile without counting as seen: for the read-out.
  peek(key) {
    const tile = this.tiles.get(key);
    return tile && !tile.failed ? tile : null;
  }

  // Ask for a tile of this frame: {key, url, width, height, priority, slow}; lower priorities come first.
  want(request) {
    const tile = this.tiles.get(request.key);
    if (tile && (!tile.failed || tile.until > performance.now())) return;
    const other = this.wanted.get(request.key);
    if (!other || request.priority < other.priority) this.wanted.set(request.key, request);
  }

  // The frame is drawn: drop what it no longer wants, fetch what it lacks.
  end() {
    for (const [key, controller] of this.flying) {
      if (this.wanted.has(key)) this.wanted.delete(key);
      else {
        this.flying.delete(key);
        controller.abort();
      }
    }
    this.fetchNext();
  }

  fetchNext() {
    if (this.flying.size >= PARALLEL || !this.wanted.size) return;
    const queue = [...this.wanted.values()].sort((one, other) => one.priority - other.priority);
    let slow = [...this.flying.values()].filter((flight) => flight.slow).length;
    for (const request of queue) {
      if (this.flying.size >= PARALLEL) return;
      if (request.slow && slow >= PARALLEL_SLOW) continue;
      slow += request.slow ? 1 : 0;
      this.wanted.delete(request.key);
      this.fetchOne(request);
    }
  }

  async fetchOne(request) {
    const controller = Object.assign(new AbortController(), { slow: request.slow });
    this.flying.set(request.key, controller);
    try {
      const answer = await fetch(request.url, { signal: controller.signal });
      if (!answer.ok) throw new Error((await answer.text()).trim() || `status ${answer.status}`);
      const bytes = answer.status === 204 ? null : new Uint8Array(await answer.arrayBuffer());
      if (bytes && bytes.length !== request.width * request.height) throw new Error(`${request.url} is incomplete`);
      this.keep(request, bytes);
      this.problem = "";
    } catch (error) {
      if (controller.signal.aborted) return;
      this.tiles.set(request.key, { failed: true, until: performance.now() + RETRY_MS });
      this.problem = error instanceof TypeError ? "the server does not answer: is `tera-mind view` still running?" : error.message;
    } finally {
      if (this.flying.get(request.key) === controller) this.flying.delete(request.key);
    }
    this.fetchNext();
    this.changed();
  }

  keep(request, bytes) {
    const tile = { slot: -1, data: bytes, width: request.width, height: request.height, frame: this.frame };
    if (bytes) {
      const { gl } = this;
      tile.slot = this.free.length ? this.free.pop() : this.evict();
      gl.bindTexture(gl.TEXTURE_2D_ARRAY, this.texture);
      gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
      gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, 0, 0, tile.slot, tile.width, tile.height, 1, gl.RED, gl.UNSIGNED_BYTE, bytes);
    }
    this.tiles.set(request.key, tile);
  }

  evict() {
    let oldest = null;
    for (const [key, tile] of this.tiles) {
      if (!tile.failed && tile.slot >= 0 && (oldest === null || tile.frame < this.tiles.get(oldest).frame)) oldest = key;
    }
    const { slot } = this.tiles.get(oldest);
    this.tiles.delete(oldest);
    return slot;
  }
}
