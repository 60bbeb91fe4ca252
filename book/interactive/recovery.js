/* What three laws recover of a population of one parameter: fits that were stored, see tools/interactive.py. */
"use strict";
(() => {
  const { element, shape, slider, box, axes, path, narrow, start } = window.interactive;
  const stored = window.recovery;
  const LAWS = { Gaussian: "gaussian", mixture: "mixture", flow: "flow" };
  const [first, last, step] = stored.grid;
  const grid = Array.from({ length: Math.round((last - first) / step) + 1 }, (_, i) => first + i * step);
  const heights = (numbers) => numbers.map((number) => number * stored.unit);
  const truth = (gap) => heights(stored.truth[gap]);
  const estimate = (gap, plants, sigma, sample, law) =>
    heights(stored.estimates[`${gap}/${plants}/${sigma}/${sample}`][law]);
  /* Half the area between two densities: the share of plants that one of them puts in another place. */
  const distance = (p, q) => 0.5 * step * p.reduce((sum, height, i) => sum + Math.abs(height - q[i]), 0);

  function build(figure) {
    const pictures = element("div", { class: "pictures one" });
    const legend = element("p", { class: "legend" });
    const words = element("p", { class: "reading", "aria-live": "polite" });
    const controls = element("div", { class: "controls", role: "group", "aria-label": "Plants, noise and groups" });
    const choice = (name, label, values, value, say) => {
      const made = slider(controls, { name, label, min: 0, max: values.length - 1, step: 1, value,
        say: (place) => say(values[place]), change: () => draw() });
      return () => values[made.value];
    };
    const plants = choice("plants", "plants", stored.plants, 1, (n) => `${n} plants`);
    const sigma = choice("noise", "noise of a reading", stored.sigmas, 0, (s) => `σ = ${s}`);
    const gap = choice("gap", "distance of the two groups", stored.gaps, stored.gaps.length - 1,
      (g) => (g ? `${g} days` : "0 days: one group"));
    const sample = choice("sample", "which sample of plants", stored.samples, 0, (s) => `sample ${s}`);
    const shown = {};
    for (const law of Object.keys(LAWS)) shown[law] = box(controls, law, law, true, () => draw());

    function draw() {
      const known = truth(gap());
      const small = narrow(figure);
      const picture = axes({ width: small ? 340 : 520, height: small ? 250 : 320, x: [32, 68], y: [0, 0.3], left: 50,
        title: "estimated density of the population", xTicks: [35, 40, 45, 50, 55, 60, 65], yTicks: [0, 0.1, 0.2, 0.3],
        xLabel: "day of senescence τ (days)", yLabel: "density (1/day)" });
      const area = [[first, 0], ...grid.map((t, i) => [t, known[i]]), [last, 0]];
      picture.group.append(shape("path", { d: `${path(area, picture.at)}Z`, class: "truth" }));
      const told = [];
      for (const [law, name] of Object.entries(LAWS)) {
        const density = estimate(gap(), plants(), sigma(), sample(), law);
        told.push(`${law} ${(100 * distance(density, known)).toFixed(0)} %`);
        if (shown[law].checked) {
          picture.group.append(shape("path", { d: path(grid.map((t, i) => [t, density[i]]), picture.at), class: `law ${name}` }));
        }
      }
      pictures.replaceChildren(picture.svg);
      words.textContent = `Share of the population that an estimate puts in the wrong place: ${told.join(", ")}.`;
    }

    for (const [label, name] of [["truth", "truth"], ...Object.entries(LAWS)]) {
      const sign = shape("svg", { viewBox: "0 0 34 12", width: 34, height: 12, "aria-hidden": "true" });
      sign.append(name === "truth" ? shape("rect", { x: 1, y: 1, width: 32, height: 10, class: "truth" })
        : shape("path", { d: "M1 6H33", class: `law ${name}` }));
      legend.append(element("span", {}, sign, ` ${label}`));
    }
    figure.prepend(pictures, legend, words, controls);
    return draw;
  }

  Object.assign(window.interactive, { recovered: { truth, estimate, distance, grid, step } });
  start("recovery", build);
})();
