/* What the interactive figures share: elements, sliders, axes, contour lines. No other script is needed. */
"use strict";
window.interactive = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function shape(name, attributes = {}, text = "") {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return made;
  }

  /* A labelled slider; `say` turns its value into the words beside it, which screen readers read, too. */
  function slider(panel, { name, label, min, max, step, value, say, change }) {
    const words = element("output", { for: `slider-${name}` });
    const input = element("input", { type: "range", id: `slider-${name}`, min, max, step });
    input.value = value;
    const show = () => {
      words.textContent = say(Number(input.value));
      input.setAttribute("aria-valuetext", words.textContent);
    };
    input.addEventListener("input", () => { show(); change(); });
    show();
    panel.append(element("div", { class: "control" },
      element("label", { for: input.id }, label), input, words));
    return { get value() { return Number(input.value); }, set value(v) { input.value = v; show(); } };
  }

  function box(panel, name, label, checked, change) {
    const input = element("input", { type: "checkbox", id: `box-${name}` });
    input.checked = checked;
    input.addEventListener("change", change);
    panel.append(element("div", { class: "choice" }, input, element("label", { for: input.id }, label)));
    return input;
  }

  function button(panel, label, act) {
    const made = element("button", { type: "button" }, label);
    made.addEventListener("click", act);
    panel.append(made);
    return made;
  }

  /* A picture with axes; returns maps from values to places, and a group to draw in. */
  function axes({ width, height, x, y, xTicks, yTicks, xLabel, yLabel, title, left = 40 }) {
    const right = 8, top = 24, bottom = 40;
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
    const at = {
      x: (v) => left + (v - x[0]) / (x[1] - x[0]) * (width - left - right),
      y: (v) => height - bottom - (v - y[0]) / (y[1] - y[0]) * (height - top - bottom),
    };
    const clip = `clip-${Math.random().toString(36).slice(2)}`;
    const frame = { x: left, y: top, width: width - left - right, height: height - top - bottom };
    const clipping = shape("clipPath", { id: clip });
    clipping.append(shape("rect", frame));
    svg.append(clipping, shape("rect", { ...frame, class: "frame" }));
    svg.append(shape("text", { x: width / 2, y: 15, class: "title" }, title));
    for (const tick of xTicks) {
      svg.append(shape("line", { x1: at.x(tick), x2: at.x(tick), y1: height - bottom, y2: height - bottom + 4, class: "tick" }));
      svg.append(shape("text", { x: at.x(tick), y: height - bottom + 16, class: "number" }, String(tick)));
    }
    for (const tick of yTicks) {
      svg.append(shape("line", { x1: left - 4, x2: left, y1: at.y(tick), y2: at.y(tick), class: "tick" }));
      svg.append(shape("text", { x: left - 7, y: at.y(tick) + 4, class: "number end" }, String(tick)));
    }
    svg.append(shape("text", { x: left + frame.width / 2, y: height - 6, class: "name" }, xLabel));
    const middle = top + frame.height / 2;
    svg.append(shape("text", { x: 11, y: middle, class: "name", transform: `rotate(-90 11 ${middle})` }, yLabel));
    const group = shape("g", { "clip-path": `url(#${clip})` });
    svg.append(group);
    return { svg, at, group };
  }

  const path = (points, at) =>
    points.map(([a, b], i) => `${i ? "L" : "M"}${at.x(a).toFixed(1)} ${at.y(b).toFixed(1)}`).join("");

  /* Heights above which a density on a regular grid holds given shares of its mass. */
  function levels(values, shares) {
    const ordered = Float64Array.from(values).sort().reverse();
    const total = ordered.reduce((sum, v) => sum + v, 0);
    return shares.map((share) => {
      let held = 0;
      for (const v of ordered) {
        held += v;
        if (held >= share * total) return v;
      }
      return 0;
    });
  }

  /* Contour lines by marching squares: values[i * ys.length + j] at (xs[i], ys[j]). */
  function contour(values, xs, ys, level, at) {
    const n = ys.length, parts = [];
    const cross = (p, q, a, b) => [p[0] + (q[0] - p[0]) * (level - a) / (b - a), p[1] + (q[1] - p[1]) * (level - a) / (b - a)];
    for (let i = 0; i + 1 < xs.length; i++) {
      for (let j = 0; j + 1 < n; j++) {
        const corners = [[xs[i], ys[j]], [xs[i + 1], ys[j]], [xs[i + 1], ys[j + 1]], [xs[i], ys[j + 1]]];
        const v = [values[i * n + j], values[(i + 1) * n + j], values[(i + 1) * n + j + 1], values[i * n + j + 1]];
        const ends = [];
        for (let k = 0; k < 4; k++) {
          const m = (k + 1) % 4;
          if ((v[k] >= level) !== (v[m] >= level)) ends.push(cross(corners[k], corners[m], v[k], v[m]));
        }
        for (let k = 0; k + 1 < ends.length; k += 2) parts.push(path([ends[k], ends[k + 1]], at));
      }
    }
    return parts.join("");
  }

  /* Build the figures of a page; `build` returns what draws one, which is done again when its width changes. */
  function start(name, build) {
    for (const figure of document.querySelectorAll(`figure[data-interactive="${name}"]`)) {
      const draw = build(figure);
      window.addEventListener("resize", draw);
      draw();
    }
  }

  const narrow = (figure) => figure.clientWidth < 520;

  return { element, shape, slider, box, button, axes, path, levels, contour, narrow, start };
})();
