// The reader's own group element on a 2-2-1 ReLU network: `spec` holds the two units, the pictures' limits and sizes.
(function ({ root, spec, find, across, up, line, number, slide }) {
  const start = () => ({ order: [0, 1], logScales: [0, 0], compensate: true });
  let state = start();

  // The network that the controls describe: unit u's incoming weights and bias times s, its outgoing weight divided by s.
  const network = ({ order, logScales, compensate }) => order.map((u) => {
    const s = Math.exp(logScales[u]), unit = spec.units[u];
    return { incoming: unit.incoming.map((w) => w * s), bias: unit.bias * s, outgoing: unit.outgoing / (compensate ? s : 1) };
  });
  const contribution = (unit, x, y) =>
    unit.outgoing * Math.max(0, unit.incoming[0] * x + unit.incoming[1] * y + unit.bias);
  const value = (net, x, y) => net.reduce((sum, unit) => sum + contribution(unit, x, y), spec.bias);
  const trained = network(start());

  const { size, plane, slice } = spec;
  const graph = (f) => line(slice.t.map((t) => [across(t, slice.limit), up(f(t * slice.direction[0], t * slice.direction[1]), slice.range)]));
  const ray = (w, other, first) => {  // where one output weight goes while its unit is scaled: from the axis outwards
    const end = w < 0 ? -plane : plane;
    const [a, b] = first ? [[0, other], [end, other]] : [[other, 0], [other, end]];
    return line([a, b].map(([x, y]) => [across(x, plane), size - across(y, plane)]));
  };
  const place = (part, x, y) => {
    find(part).setAttribute("cx", across(x, plane).toFixed(1));
    find(part).setAttribute("cy", (size - across(y, plane)).toFixed(1));
  };

  const largestChange = (net) => {
    let largest = 0;
    for (let i = -20; i <= 20; i++) for (let j = -20; j <= 20; j++) {
      const x = i / 20 * slice.limit, y = j / 20 * slice.limit;
      largest = Math.max(largest, Math.abs(value(net, x, y) - value(trained, x, y)));
    }
    return largest;
  };

  function draw() {
    const net = network(state), [x, y] = net.map((unit) => unit.outgoing);
    place("point", x, y);
    place("mirror", y, x);
    state.order.forEach((u, position) => {
      const first = position === 0, [w, other] = first ? [x, y] : [y, x];
      find(`path-${u}`).setAttribute("d", ray(w, other, first));
      find(`mirror-path-${u}`).setAttribute("d", ray(w, other, !first));
      find(`unit-${u}`).setAttribute("d", graph((a, b) => contribution(net[position], a, b)));
      const cells = find(`row-${u}`).children, unit = net[position];
      const shown = [position === 0 ? "first" : "second", ...unit.incoming.map((w) => number(w)), number(unit.bias), number(unit.outgoing)];
      shown.forEach((text, i) => { cells[i + 1].textContent = text; });
      const factor = number(Math.exp(state.logScales[u]));
      slide(`scale-${u}`, Math.round(state.logScales[u] / spec.reach * 100), `× ${factor}`, `incoming weights times ${factor}`);
    });
    find("function").setAttribute("d", graph((a, b) => value(net, a, b)));
    const change = largestChange(net);
    const said = change === 0 ? "exactly 0" : change < 1e-9 ? `${change.toExponential(0)} (rounding)` : number(change);
    find("said").textContent = `Output weights (${number(x)}, ${number(y)}). Largest change of the function: ${said}.`;
    root.dataset.change = change;
  }

  for (const u of [0, 1]) find(`scale-${u}`).addEventListener("input", (event) => {
    state.logScales[u] = event.target.value / 100 * spec.reach;
    draw();
  });
  find("swap").addEventListener("click", () => { state.order.reverse(); draw(); });
  find("reset").addEventListener("click", () => { state = start(); find("compensate").checked = true; draw(); });
  find("compensate").addEventListener("change", (event) => { state.compensate = event.target.checked; draw(); });
  draw();
})
