/* A change of variables bent by hand: a Gaussian through one or two coupling layers.
   A layer keeps one coordinate, a, and moves the other: u_b -> u_b exp(s(a)) + m(a). */
"use strict";
(() => {
  const { element, shape, slider, box, button, axes, path, levels, contour, narrow, start } = window.interactive;
  const REACH = 5, CELLS = 96, SHARES = [0.95, 0.8, 0.5, 0.2];

  const scale = (a, k) => k.c + k.d * Math.tanh(a);
  const shift = (a, k) => k.a * Math.sin(a) + k.b * (1 - Math.cos(a));
  const kept = (k) => (k.second ? [Number(k.swap), 1 - Number(k.swap)] : [Number(k.swap)]);

  /* (u1, u2) -> (z1, z2), and the log-determinant: the sum of s over the layers. */
  function forward(u, k) {
    const z = [...u];
    const steps = [];
    for (const keep of kept(k)) {
      const s = scale(z[keep], k);
      z[1 - keep] = z[1 - keep] * Math.exp(s) + shift(z[keep], k);
      steps.push(s);
    }
    return { z, steps, logdet: steps.reduce((sum, s) => sum + s, 0) };
  }

  /* (z1, z2) -> (u1, u2), and the log-determinant of the way back. */
  function inverse(z, k) {
    const u = [...z];
    let logdet = 0;
    for (const keep of kept(k).reverse()) {
      const s = scale(u[keep], k);
      u[1 - keep] = (u[1 - keep] - shift(u[keep], k)) * Math.exp(-s);
      logdet -= s;
    }
    return { u, logdet };
  }

  const normal = (u) => Math.exp(-0.5 * (u[0] ** 2 + u[1] ** 2)) / (2 * Math.PI);
  const density = (z, k) => {
    const { u, logdet } = inverse(z, k);
    return normal(u) * Math.exp(logdet);
  };

  /* The same 300 normal points for everybody: Box-Muller on a small generator with a fixed seed. */
  function sample(n) {
    let state = 12345;
    const uniform = () => {
      state = (state * 1103515245 + 12345) % 2147483648;
      return (state + 0.5) / 2147483648;
    };
    return Array.from({ length: n }, () => {
      const r = Math.sqrt(-2 * Math.log(uniform())), angle = 2 * Math.PI * uniform();
      return [r * Math.cos(angle), r * Math.sin(angle)];
    });
  }

  const line = Array.from({ length: CELLS + 1 }, (_, i) => -REACH + 2 * REACH * i / CELLS);
  function meshed(k) {
    const values = new Float64Array(line.length ** 2);
    line.forEach((x, i) => line.forEach((y, j) => { values[i * line.length + j] = density([x, y], k); }));
    return values;
  }

  const IDENTITY = { a: 0, b: 0, c: 0, d: 0, swap: false, second: false };
  const PRESETS = {
    "Start": { a: 0, b: 1.2, c: -0.4, d: 0, swap: false, second: false },
    "No change": IDENTITY,
    "Funnel": { a: 0, b: 0, c: -0.2, d: 0.8, swap: false, second: false },
    "Two layers": { a: 1.5, b: 0.8, c: -0.2, d: 0.3, swap: false, second: true },
  };
  const POINTS = sample(300);
  const rows = [-2, -1, 0, 1, 2];
  const span = Array.from({ length: 61 }, (_, i) => -3 + i / 10);
  const GRID = [...rows.map((v) => span.map((w) => [v, w])), ...rows.map((v) => span.map((w) => [w, v]))];
  function square([x, y], half = 0.3) {
    const side = Array.from({ length: 9 }, (_, i) => -half + i * half / 4);
    return [...side.map((t) => [x + t, y - half]), ...side.map((t) => [x + half, y + t]),
      ...side.map((t) => [x - t, y + half]), ...side.map((t) => [x - half, y - t])];
  }

  function panel(title, names, map, k, marked, small) {
    const ticks = small ? [-4, 0, 4] : [-4, -2, 0, 2, 4], width = small ? 190 : 340;
    const picture = axes({ width, height: width + 16, x: [-REACH, REACH], y: [-REACH, REACH], title,
      xTicks: ticks, yTicks: ticks, xLabel: names[0], yLabel: names[1] });
    const { group } = picture;
    for (const curve of GRID) group.append(shape("path", { d: path(curve.map(map), picture.at), class: "grid" }));
    const values = meshed(k);
    for (const level of levels(values, SHARES)) {
      group.append(shape("path", { d: contour(values, line, line, level, picture.at), class: "contour" }));
    }
    for (const point of POINTS) {
      const [x, y] = map(point);
      group.append(shape("circle", { cx: picture.at.x(x).toFixed(1), cy: picture.at.y(y).toFixed(1), r: small ? 1.1 : 1.7, class: "point" }));
    }
    group.append(shape("path", { d: `${path(square(marked).map(map), picture.at)}Z`, class: "marked" }));
    return picture.svg;
  }

  const two = (v) => v.toFixed(2).replace("-", "−");

  function build(figure) {
    const pictures = element("div", { class: "pictures" });
    const controls = element("div", { class: "controls", role: "group", "aria-label": "Shift, scale and layers" });
    const words = element("p", { class: "reading", "aria-live": "polite" });
    const draw = () => {
      const k = state(), marked = [x.value, y.value];
      const { steps, logdet, z } = forward(marked, k), small = narrow(figure);
      pictures.replaceChildren(
        panel("base: normal", ["u1", "u2"], (u) => u, IDENTITY, marked, small),
        panel("after the map", ["z1", "z2"], (u) => forward(u, k).z, k, marked, small));
      const sum = steps.length > 1 ? `${steps.map(two).join(" + ")} = ${two(logdet)}` : two(logdet);
      words.textContent = `At the centre of the marked square, log-determinant = sum of s = ${sum}: areas grow by the factor `
        + `${Math.exp(logdet).toFixed(2)}, and the density goes from ${normal(marked).toFixed(3)} to ${density(z, k).toFixed(3)}.`;
      figure.dataset.logdet = logdet;
    };
    const make = (name, label, reach, value) =>
      slider(controls, { name, label, min: -reach, max: reach, step: 0.05, value, say: two, change: draw });
    const first = PRESETS["Start"];
    const c = make("scale", "scale, level c", 0.8, first.c);
    const d = make("scale-slope", "scale, slope d", 0.8, first.d);
    const a = make("shift", "shift, wave a", 2, first.a);
    const b = make("shift-bend", "shift, bend b", 2, first.b);
    const x = make("u1", "marked square, u1", 2, 1);
    const y = make("u2", "marked square, u2", 2, 0.5);
    const swap = box(controls, "swap", "keep the second coordinate, move the first", first.swap, () => draw());
    const second = box(controls, "second", "a second layer, which keeps the other coordinate", first.second, () => draw());
    const state = () => ({ a: a.value, b: b.value, c: c.value, d: d.value, swap: swap.checked, second: second.checked });
    const presets = element("div", { class: "presets", role: "group", "aria-label": "Examples" });
    for (const [label, k] of Object.entries(PRESETS)) {
      button(presets, label, () => {
        a.value = k.a; b.value = k.b; c.value = k.c; d.value = k.d;
        swap.checked = k.swap; second.checked = k.second;
        draw();
      });
    }
    controls.append(presets);
    figure.prepend(pictures, words, controls);
    return draw;
  }

  Object.assign(window.interactive, { coupling: { forward, inverse, density, PRESETS } });
  start("coupling", build);
})();
