// What the figures to play with share: `play` is the script of one of them, `spec` is written by lib/widgets.py.
// Nothing is fetched, nothing outside the figure is touched.
(function (root, spec, play) {
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "yes";
  const { size } = spec;
  const find = (part) => root.querySelector(`[data-part="${part}"]`);

  // Drawing, in the units of each picture's own viewBox.
  const across = (v, limit) => (v / limit + 1) * size / 2;
  const up = (v, [low, high], height = size) => (high - v) / (high - low) * height;
  const line = (points) => "M" + points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");

  const number = (v, digits = 2) => v.toFixed(digits).replace("-", "−");
  const slide = (part, value, shown, said) => {
    find(part).value = value;
    find(part).setAttribute("aria-valuetext", said);
    find(`${part}-value`).textContent = shown;
  };

  play({ root, spec, find, across, up, line, number, slide });
  find("controls").hidden = false;
})
