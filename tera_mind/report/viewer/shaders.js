// GLSL of the two passes. First: tiles of grey values into one texture a layer, a stain a channel. Second: stain
// colours, brightness windows, blending, difference, map and outlines, from those textures. So a change of colour,
// window or opacity asks for no tile again.

export const TILE_VERTEX = `#version 300 es
uniform vec4 rect;  // x0, y0, x1, y1 in clip coordinates
out vec2 place;
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  place = corner;
  gl_Position = vec4(mix(rect.xy, rect.zw, corner), 0.0, 1.0);
}`;

export const TILE_FRAGMENT = `#version 300 es
precision highp float;
precision highp sampler2DArray;
uniform sampler2DArray tiles;
uniform vec2 size;      // texels of this tile
uniform float tile_px;  // texels a slot
uniform float slot;     // below 0: a tile of zeros
uniform bool smooth_pixels;
in vec2 place;
out vec4 grey;
void main() {
  vec2 texel = place * size;
  float value = 0.0;
  if (slot >= 0.0 && smooth_pixels) {
    value = texture(tiles, vec3(clamp(texel, vec2(0.5), size - 0.5) / tile_px, slot)).r;
  } else if (slot >= 0.0) {
    value = texelFetch(tiles, ivec3(min(texel, size - 0.5), int(slot)), 0).r;
  }
  grey = vec4(value);
}`;

export const COMPOSE_VERTEX = `#version 300 es
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  gl_Position = vec4(corner * 4.0 - 1.0, 0.0, 1.0);
}`;

export const COMPOSE_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D greys_a, greys_b, marks;
uniform vec2 origin;      // pane's lower left corner, device pixels
uniform float height;     // of the pane
uniform int mode;         // 0: a alone, 1: overlay, 2: curtain, 3: difference
uniform vec4 box_a, box_b, canvas;  // x0, y0, x1, y1 in pane pixels, y down
uniform vec3 colours[4];
uniform vec2 windows[4];  // brightness shown as none and as full, 0 .. 1
uniform float opacity, split, gain;
uniform float zoom;       // device pixels a canvas pixel
uniform float line_px;    // width of outlines, 0 for none
uniform float rim, per_px;
uniform float map_opacity;
uniform bool second;        // a is the second of two panes: outlines in its colour
out vec4 colour;

const vec3 BACK = vec3(0.043, 0.051, 0.067);
const vec3 EMPTY = vec3(0.075, 0.086, 0.110);
const vec3 LINE_A = vec3(0.32, 0.92, 0.86);
const vec3 LINE_B = vec3(1.0, 0.60, 0.30);

bool inside(vec2 p, vec4 box) {
  return all(greaterThanEqual(p, box.xy)) && all(lessThan(p, box.zw));
}

vec3 stained(vec4 grey) {
  vec3 sum = vec3(0.0);
  for (int i = 0; i < 4; i++) {
    float share = (grey[i] - windows[i].x) / max(windows[i].y - windows[i].x, 1.0 / 255.0);
    sum += colours[i] * clamp(share, 0.0, 1.0);
  }
  return min(sum, vec3(1.0));
}

// after the "viridis" map: dark violet, blue, green, yellow
vec3 map_colour(float t) {
  vec3 stops[6] = vec3[6](vec3(0.267, 0.005, 0.329), vec3(0.254, 0.265, 0.530), vec3(0.164, 0.471, 0.558),
                          vec3(0.135, 0.659, 0.518), vec3(0.478, 0.821, 0.319), vec3(0.993, 0.906, 0.144));
  float at = clamp(t, 0.0, 1.0) * 5.0;
  int i = min(int(at), 4);
  return mix(stops[i], stops[i + 1], at - float(i));
}

vec3 difference(float delta) {  // below 0 blue, above 0 red, 0 dark
  float share = clamp(abs(delta) * gain, 0.0, 1.0);
  vec3 hue = delta < 0.0 ? vec3(0.30, 0.58, 1.0) : vec3(1.0, 0.38, 0.28);
  return mix(vec3(0.10, 0.11, 0.13), hue, share);
}

float border(vec2 p, vec4 box) {
  vec2 off = max(box.xy - p, p - box.zw);
  float d = max(off.x, off.y);
  return 1.0 - smoothstep(0.5, 1.5, abs(d));
}

float outline(float byte) {
  if (byte < 0.5 || line_px <= 0.0) return 0.0;
  float distance_px = abs(byte - rim) / per_px * zoom;
  return 1.0 - smoothstep(0.5 * line_px - 0.5, 0.5 * line_px + 0.5, distance_px);
}

void main() {
  ivec2 at = ivec2(gl_FragCoord.xy - origin);
  vec2 p = vec2(gl_FragCoord.x - origin.x, height - (gl_FragCoord.y - origin.y));
  vec4 a = texelFetch(greys_a, at, 0), b = texelFetch(greys_b, at, 0), mark = texelFetch(marks, at, 0) * 255.0;
  bool in_a = inside(p, box_a), in_b = mode != 0 && inside(p, box_b);
  vec3 picture = inside(p, canvas) ? EMPTY : BACK;
  float seen_a = 1.0, seen_b = mode == 0 ? 0.0 : 1.0;
  if (mode == 0) {
    if (in_a) picture = stained(a);
  } else if (mode == 1) {
    if (in_a && in_b) picture = mix(stained(a), stained(b), opacity);
    else if (in_a) picture = stained(a);
    else if (in_b) picture = stained(b);
    seen_a = in_b ? 1.0 - 0.75 * opacity : 1.0;
    seen_b = 0.25 + 0.75 * opacity;
  } else if (mode == 2) {
    bool left = p.x < split;
    if (left ? in_a : in_b) picture = stained(left ? a : b);
    seen_a = left ? 1.0 : 0.0;
    seen_b = 1.0 - seen_a;
  } else if (in_a && in_b) {
    picture = difference(b.r - a.r);
  } else if (in_a) {
    picture = 0.35 * vec3(a.r);
  }
  if (mark.b > 0.5) picture = mix(picture, map_colour((mark.b - 1.0) / 254.0), map_opacity);
  if (in_a) picture = mix(picture, second ? LINE_B : LINE_A, outline(mark.r) * seen_a);
  if (in_b) picture = mix(picture, LINE_B, outline(mark.g) * seen_b);
  float edge = max(border(p, canvas), border(p, box_a));
  if (mode != 0) edge = max(edge, border(p, box_b));
  colour = vec4(mix(picture, vec3(0.62, 0.68, 0.78), 0.38 * edge), 1.0);
}`;
