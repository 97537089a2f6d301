// One filter of two weights and a loss that knows only its direction, as in lib/step_player.py: `walk` and `scene` are
// the functions of the same name there.
(function ({ root, spec, find, across, up, line, number, slide }) {
  const { size, height, most, methods, target } = spec;
  const start = () => ({ ...spec.start, shown: methods.map(() => true) });
  let state = start();

  const plus = (a, s, b) => [a[0] + s * b[0], a[1] + s * b[1]];
  const times = (s, a) => [s * a[0], s * a[1]];
  const inner = (a, b) => a[0] * b[0] + a[1] * b[1];
  const norm = (a) => Math.hypot(...a);
  const unit = (a) => times(1 / norm(a), a);

  const loss = (w) => 1 - inner(unit(w), target);
  const gradient = (w) => times(-1 / norm(w), plus(target, -inner(target, unit(w)), unit(w)));
  const tangent = (w, g) => plus(g, -inner(w, g) / inner(w, w), w);
  const steps = {
    "SGD": (w, g, rate) => plus(w, -rate, g),
    "unit norm": (w, g, rate) => unit(plus(w, -rate, tangent(w, g))),
    "scaled metric": (w, g, rate) => plus(w, -rate * inner(w, w), g),
  };
  const walk = (method, rate, length) => {
    const points = [times(method === "unit norm" ? 1 : length, spec.direction)];
    while (points.length <= most) points.push(steps[method](points.at(-1), gradient(points.at(-1)), rate));
    return points;
  };
  root.walk = walk;  // for tests/book/test_step_player.py

  const place = (points, centre, half) =>
    points.map((p) => [across(p[0] - centre[0], half), across(centre[1] - p[1], half)]);
  const at = (point, ...names) => Object.fromEntries(names.map((name, i) => [name, point[i].toFixed(1)]));
  const circle = (centre, half) =>
    ({ ...at(place([[0, 0]], centre, half)[0], "cx", "cy"), r: (size / 2 / half).toFixed(1) });
  const graph = (path) => path.map((w, i) => [i / most * size, up(loss(w), [0, 2], height)]);
  const beside = (point, [u, v], distance, wide = 0) => {
    const [x, y] = plus(point, distance + wide * Math.abs(u), [u, -v]);
    return at([x, y + 4], "x", "y");
  };
  const arrow = (a, b) => {
    const along = plus(b, -1, a), [x, y] = times(Math.min(9, norm(along) / 2) / Math.max(norm(along), 1e-9), along);
    const back = plus(b, -1, [x, y]);
    return line([a, b]) + line([plus(back, 0.5, [-y, x]), b, plus(back, 0.5, [y, -x])]);
  };

  const limitOf = (walks, step) => {
    const shown = walks.filter((_, i) => state.shown[i]);
    const longest = Math.max(1, ...shown.flatMap((path) => path.slice(0, step + 1).map(norm)));
    return spec.limits.find((each) => each >= 1.1 * longest) ?? spec.limits.at(-1);
  };

  function scene(walks, ends, rate, step, limit) {
    const parts = { circle: circle([0, 0], limit) };
    walks.forEach((path, i) => {
      const points = place(path.slice(0, step + 1), [0, 0], limit), heights = graph(path);
      parts[`path-${i}`] = { d: line(points) };
      parts[`dots-${i}`] = { d: points.map((point) => `${line([point])}h0`).join("") };
      parts[`point-${i}`] = at(points.at(-1), "cx", "cy");
      parts[`loss-${i}`] = { d: line(heights) };
      parts[`loss-point-${i}`] = at(heights[step], "cx", "cy");
    });
    ends.forEach((path, i) => { parts[`end-${i}`] = { d: line(graph(path)) }; });
    const x = step / most * size;
    parts.now = { d: line([[x, 0], [x, height]]) };

    const circular = walks[methods.indexOf("unit norm")], from = circular[Math.max(step - 1, 0)], to = circular[step];
    const moved = plus(from, step ? -rate : 0, gradient(from));
    const centre = times(0.5, plus(from, 1, moved)), half = Math.max(spec.closest, 0.75 * norm(plus(moved, -1, from)));
    const along = times(3 * half, [-from[1], from[0]]);
    const [origin, a, b, c, ...edges] = place([[0, 0], from, moved, to, plus(from, -1, along), plus(from, 1, along)], centre, half);
    const [corner] = place([plus(centre, half, [-1, 1])], [0, 0], limit), side = (size * half / limit).toFixed(1);
    const opacity = norm(plus(b, -1, a)) > 36 ? "1" : "0";
    return Object.assign(parts, {
      "window": { ...at(corner, "x", "y"), width: side, height: side },
      "close-circle": circle(centre, half),
      "radius": { d: line([origin, a]) },
      "tangent": { d: line(edges) },
      "gradient": { d: arrow(a, b) },
      "retraction": { d: arrow(b, c) },
      "close-point": at(c, "cx", "cy"),
      "name-at": beside(a, from, 14),
      "name-moved": { ...beside(b, from, 16, 18), opacity },
      "name-new": { ...beside(c, times(-1, to), 18, 14), opacity },
    });
  }

  const short = (v) => String(Number(v.toPrecision(2)));
  const told = (v) => v < 0.0005 ? "below 0.001" : number(v, 3);
  function tell(walks, rate, step) {
    const [sgd, circular, scaled] = walks.map((path) => path[step]);
    const gap = Math.max(...walks[1].slice(0, step + 1).map((w, i) => Math.abs(loss(w) - loss(walks[2][i]))));
    const difference = gap === 0 ? "exactly 0" : gap < 1e-9 ? `${gap.toExponential(0).replace("-", "−")} (rounding)` : short(gap);
    const sentences = [
      `SGD: length ${number(norm(sgd), 3)}, effective rate η/‖w‖² = ${short(rate / inner(sgd, sgd))}, loss ${told(loss(sgd))}.`,
      `Unit norm: length 1, effective rate ${short(rate)}, loss ${told(loss(circular))}.`,
      `Scaled metric: loss ${told(loss(scaled))}, its largest difference from unit norm’s so far ${difference}.`,
    ].filter((_, i) => state.shown[i]);
    return `After ${step} step${step === 1 ? "" : "s"}. ${sentences.join(" ") || "No method is shown."}`;
  }

  function draw() {
    const rate = spec.rates[state.rate], length = spec.lengths[state.length], step = state.steps;
    const walks = methods.map((method) => walk(method, rate, length));
    const limit = limitOf(walks, step);
    const ends = [spec.lengths[0], spec.lengths.at(-1)].map((each) => walk("SGD", rate, each));
    for (const [part, attributes] of Object.entries(scene(walks, ends, rate, step, limit)))
      for (const [name, value] of Object.entries(attributes)) find(part).setAttribute(name, value);
    find("plane").querySelectorAll(".pl-tick").forEach((tick, i) => { tick.textContent = (i % 2 ? "" : "−") + limit; });
    slide("rate", state.rate, String(rate), String(rate));
    slide("length", state.length, String(length), String(length));
    slide("steps", step, String(step), String(step));
    state.shown.forEach((shown, i) => {
      find(`show-${i}`).checked = shown;
      root.querySelectorAll(`.sp-method${i}`).forEach((element) => { element.style.display = shown ? "" : "none"; });
    });
    find("said").textContent = tell(walks, rate, step);
  }

  for (const name of ["rate", "length", "steps"]) find(name).addEventListener("input", (event) => {
    state[name] = Number(event.target.value);
    draw();
  });
  methods.forEach((_, i) => find(`show-${i}`).addEventListener("change", (event) => {
    state.shown[i] = event.target.checked;
    draw();
  }));
  find("reset").addEventListener("click", () => { state = start(); draw(); });
  draw();
})
