// Draws the maps of the fact in <script id="data"> and moves the selected cell, a (token, layer), in all views.

const data = JSON.parse(byId("data").textContent);
const [T, L] = [data.tokens.length, data.layers];
const LEVELS = 20; // strengths of colour, as the classes p1 to p20 and n1 to n20 have them
const SVG = "http://www.w3.org/2000/svg";
const MOVES = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  Home: [0, -Infinity], End: [0, Infinity], PageUp: [-Infinity, 0], PageDown: [Infinity, 0],
};
const grids = []; // { table, frame, cells: [token][layer], tokens: headings, layers: headings, say }
const state = { token: data.start[0], layer: data.start[1] };

// ---- Helpers

function within(value, count) { return Math.max(0, Math.min(count - 1, value)); }

function readable(text) {
  const marks = { "\n": "↵", "\t": "⇥", "\r": "␍" };
  const shown = text.replace(/[\n\t\r]/gu, one => marks[one]).trim();
  return shown === "" ? "␣" : shown;
}

function signed(value) {
  if (value === null) return "no number";
  const text = Math.abs(value) < 0.0005 && value ? value.toExponential(1) : value.toFixed(3);
  return (value > 0 ? "+" : "") + text.replaceAll("-", "−");
}

function probability(value) {
  if (value === null) return "no number";
  return value && value < 0.001 ? "<0.001" : value.toFixed(3);
}

function at(name, token = state.token, layer = state.layer) { return data.values[name][token * L + layer]; }

function lensPiece(token, layer) { return data.pieces[data.lens_token[token * L + layer]]; }

function isSubject(token) { return data.span[0] <= token && token < data.span[1]; }

// ---- Colours

function strength(value, full) {
  if (value === null || !full) return "";
  const level = Math.round(Math.max(-1, Math.min(1, value / full)) * LEVELS);
  return level ? `${level > 0 ? "p" : "n"}${Math.abs(level)}` : "";
}

function largest(values) { return values.reduce((most, one) => Math.max(most, Math.abs(one ?? 0)), 0); }

const lowestRank = largest(data.values.lens_rank);

// Full colour for rank 1, none for the lowest rank on the page, evenly in the logarithm.
function nearness(rank) { return rank === null ? null : 1 - Math.log(rank) / Math.log(Math.max(2, lowestRank)); }

// ---- Maps: tokens down, layers across

function drawMaps() {
  const effects = largest(["hidden", "attn_severed", "mlp_severed"].flatMap(name => data.values[name]));
  const fulls = { hidden: effects, attn_severed: effects, mlp_severed: effects, attribution: largest(data.values.attribution) };
  for (const [name, [title, about]] of Object.entries(data.titles)) {
    const rank = name === "lens";
    const shade = rank
      ? (token, layer) => strength(nearness(at("lens_rank", token, layer)), 1)
      : (token, layer) => strength(at(name, token, layer), fulls[name]);
    const say = rank ? (token, layer) => `rank ${at("lens_rank", token, layer) ?? "none"}`
      : (token, layer) => signed(at(name, token, layer));
    const scale = rank ? ["1", String(lowestRank)] : [signed(-fulls[name]), signed(fulls[name])];
    byId("grids").append(map(name, title, about, scale, shade, say));
  }
}

function map(name, title, about, scale, shade, say) {
  const table = element("table", { className: "map", role: "grid", "aria-label": `${title}: tokens down, layers across`, "aria-describedby": "help" });
  table.style.setProperty("--layers", L);
  const layers = Array.from({ length: L }, (_, layer) => element("th", { scope: "col" }, layer % 5 ? "" : String(layer)));
  const tokens = data.tokens.map((piece, token) => heading(piece, token, "row"));
  table.append(element("thead", {}, element("tr", {}, element("th", { className: "corner" }, "token"), ...layers)));
  const cells = tokens.map((_, token) => layers.map((_, layer) => {
    const estimated = data.exact[name] !== undefined && !data.exact[name][token * L + layer];
    return cell(token, layer, `${shade(token, layer)}${estimated ? " estimate" : ""}`);
  }));
  table.append(element("tbody", {}, ...cells.map((row, token) => element("tr", {}, tokens[token], ...row))));
  const frame = element("div", { className: "frame" }, table);
  keep({ table, frame, cells, tokens, layers, say: (token, layer) => `${title}: ${say(token, layer)}` });
  const bar = element("span", { className: name === "lens" ? "scale onesided turned" : "scale", "aria-hidden": "true" },
    element("span", {}, scale[0]), element("i"), element("span", {}, scale[1]));
  return element("figure", { id: `map-${name}` }, element("figcaption", {}, element("strong", {}, title), element("span", { className: "quiet" }, about)), frame, bar);
}

function heading(piece, token, scope) {
  return element("th", { scope, title: `token ${token}: ${piece}` },
    element("span", { className: "piece", dir: "auto" }, readable(piece)), isSubject(token) ? "*" : "");
}

function cell(token, layer, className) {
  const made = element("td", { className, tabIndex: -1 });
  [made.token, made.layer] = [token, layer];
  return made;
}

// ---- The lens in words: layers down, tokens across

function drawLens() {
  const table = element("table", { className: "words", role: "grid", "aria-label": "Likeliest tokens by the logit lens: layers down, tokens across" });
  const tokens = data.tokens.map((piece, token) => heading(piece, token, "col"));
  const layers = Array.from({ length: L }, (_, layer) => element("th", { scope: "row" }, String(layer)));
  table.append(element("thead", {}, element("tr", {}, element("th", { className: "corner" }, "layer"), ...tokens)));
  const cells = tokens.map((_, token) => layers.map((_, layer) => {
    const made = cell(token, layer, strength(nearness(at("lens_rank", token, layer)), 1));
    made.append(element("span", { className: "piece", dir: "auto" }, readable(lensPiece(token, layer))));
    return made;
  }));
  table.append(element("tbody", {}, ...layers.map((th, layer) => element("tr", {}, th, ...cells.map(row => row[layer])))));
  byId("lens-frame").append(table);
  const say = (token, layer) => `“${readable(lensPiece(token, layer))}”, rank of the answer ${at("lens_rank", token, layer) ?? "none"}`;
  keep({ table, frame: byId("lens-frame"), cells, tokens, layers, turned: true, say });
}

// ---- Knockout curves

function drawCurves() {
  const found = data.knockout;
  if (!found) return;
  const [wide, high, left, top, bottom] = [640, 240, 60, 14, 30];
  const most = Math.max(found.clean ?? 0, ...found.probability.flat().map(one => one ?? 0), 1e-9);
  const x = layer => left + (wide - left - 10) * (L > 1 ? layer / (L - 1) : 0.5);
  const y = value => top + (high - top - bottom) * (1 - value / most);
  const svg = shape("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": "Probability of the answer by the middle layer of the knockout; the numbers of the selected layer are beside the maps" });
  const line = (y0, className) => shape("line", { x1: left, x2: wide - 10, y1: y0, y2: y0, class: className });
  svg.append(line(y(0), "axis"), line(y(found.clean ?? 0), "clean"));
  for (const [value, text] of [[0, "0"], [most, most.toPrecision(2)]]) svg.append(label(left - 6, y(value) + 4, text, "end"));
  for (let layer = 0; layer < L; layer += 5) svg.append(label(x(layer), high - 10, String(layer), "middle"));
  found.probability.forEach((values, number) => {
    const points = values.map((value, layer) => (value === null ? null : `${x(layer)},${y(value)}`)).filter(one => one);
    svg.append(shape("polyline", { points: points.join(" "), class: `curve c${number}` }));
  });
  const marker = shape("line", { y1: top, y2: high - bottom, class: "marker", id: "marker" });
  svg.append(marker);
  svg.addEventListener("click", event => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width * wide - left) / (wide - left - 10);
    select(state.token, within(Math.round(place * (L - 1)), L));
  });
  marker.x = x;
  const names = { subject: "the subject", relation: "the other tokens", itself: "itself" };
  const keys = found.sources.map((source, number) => element("li", {}, element("i", { className: `key c${number}` }), `cannot attend to ${names[source] ?? source}`));
  keys.push(element("li", {}, element("i", { className: "key clean" }), `clean run: ${probability(found.clean)}`));
  byId("curves").append(svg, element("ul", { className: "keys" }, ...keys));
}

function shape(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function label(x, y, text, anchor) {
  const made = shape("text", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

// ---- The selected cell

function keep(grid) {
  grids.push(grid);
  grid.table.addEventListener("click", event => {
    const cell = event.target.closest("td");
    if (cell) select(cell.token, cell.layer, cell);
  });
  grid.table.addEventListener("keydown", event => {
    const [cell, move] = [event.target.closest("td"), MOVES[event.key]];
    if (!cell || !move || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const [down, across] = grid.turned ? [...move].reverse() : move;
    const [token, layer] = [within(cell.token + down, T), within(cell.layer + across, L)];
    select(token, layer, grid.cells[token][layer]);
  });
}

function select(token, layer, focused = null) {
  for (const grid of grids) mark(grid, false);
  Object.assign(state, { token, layer });
  for (const grid of grids) mark(grid, true);
  focused?.focus({ preventScroll: true });
  for (const one of document.querySelectorAll("#sentence .token")) {
    one.setAttribute("aria-pressed", Number(one.dataset.token) === token);
  }
  for (const one of document.querySelectorAll("tr[data-token], article[data-token]")) {
    one.classList.toggle("here", Number(one.dataset.token) === token && Number(one.dataset.layer) === layer);
  }
  const marker = byId("marker");
  if (marker) for (const end of ["x1", "x2"]) marker.setAttribute(end, marker.x(layer));
  drawHere();
}

function mark(grid, on) {
  const cell = grid.cells[state.token][state.layer];
  cell.setAttribute("aria-selected", on);
  cell.tabIndex = on ? 0 : -1;
  grid.tokens[state.token].classList.toggle("here", on);
  grid.layers[state.layer].classList.toggle("here", on);
  if (!on) return;
  cell.setAttribute("aria-label", `${nameOf()}, ${grid.say(state.token, state.layer)}`);
  reveal(grid, cell);
}

// Scroll the frame of a grid, not the page, so that the cell is visible behind the fixed headings.
function reveal({ frame, tokens, layers, turned }, cell) {
  const [box, place] = [frame.getBoundingClientRect(), cell.getBoundingClientRect()];
  const [side, head] = turned ? [layers[0], tokens[0]] : [tokens[0], layers[0]];
  const [left, top] = [box.left + side.offsetWidth, box.top + head.offsetHeight];
  if (place.left < left) frame.scrollLeft -= left - place.left;
  else if (place.right > box.right) frame.scrollLeft += place.right - box.right + 2;
  // In the middle, so that the tokens around it are seen too.
  if (place.top < top || place.bottom > box.bottom) frame.scrollTop += (place.top + place.bottom - top - box.bottom) / 2;
}

function nameOf() { return `Layer ${state.layer}, token ${state.token} “${readable(data.tokens[state.token])}”`; }

function drawHere() {
  byId("here-title").replaceChildren(`Layer ${state.layer}, token ${state.token} `, element("span", { className: "piece", dir: "auto" }, readable(data.tokens[state.token])));
  byId("token").value = state.token;
  byId("layer").value = state.layer;
  const rows = [
    ...["hidden", "attn_severed", "mlp_severed"].map(name => [data.titles[name][0], traced(name)]),
    [data.titles.attribution[0], signed(at("attribution"))],
    ["Lens: likeliest token", `“${readable(lensPiece(state.token, state.layer))}” ${probability(at("lens_token_probability"))}`],
    [`Lens: “${readable(data.answer)}”`, `rank ${at("lens_rank") ?? "none"}, ${probability(at("lens_probability"))}`],
  ];
  byId("here-values").replaceChildren(...rows.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, element("bdi", {}, value)))));
  byId("here-reading").replaceChildren(...reading());
  byId("announcement").textContent = `${nameOf()}: ${rows.map(row => row.join(" ")).join("; ")}`;
  drawCsv();
}

function traced(name) {
  const exact = data.exact[name][state.token * L + state.layer];
  return `${signed(at(name))}${exact ? "" : " (estimate)"}`;
}

// The interpretation of the cell, or the command that makes it.
function reading() {
  const card = document.querySelector(`#readings article[data-token="${state.token}"][data-layer="${state.layer}"]`);
  if (card) return [element("h3", {}, "Interpretation"), ...[...card.querySelectorAll("p")].map(one => one.cloneNode(true))];
  const fill = text => text.replaceAll("{layer}", state.layer + 1).replaceAll("{token}", state.token);
  return [
    element("p", { className: "quiet" }, "This state was not interpreted. To interpret it:"),
    element("pre", { dir: "ltr" }, fill(data.making[0])),
    element("details", {}, element("summary", {}, "in Python"), element("pre", { dir: "ltr" }, fill(data.making[1]))),
  ];
}

// ---- Numbers as CSV

function quoted(value) {
  const text = value === null ? "" : String(value);
  return /[",\n\r]/u.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csvRow(token, layer) {
  const methods = ["hidden", "attn_severed", "mlp_severed"].flatMap(name =>
    [at(name, token, layer), data.exact[name][token * L + layer] ? "exact" : data.estimate]);
  const lens = ["lens_rank", "lens_probability"].map(name => at(name, token, layer));
  const likeliest = [lensPiece(token, layer), at("lens_token_probability", token, layer)];
  return [token, data.tokens[token], layer, ...methods, at("attribution", token, layer), ...lens, ...likeliest].map(quoted).join();
}

function drawCsv() {
  const traces = ["hidden", "attn_severed", "mlp_severed"].flatMap(name => [name, `${name}_method`]);
  const header = ["token_idx", "token", "layer_idx", ...traces, "attribution", "lens_rank", "lens_probability", "lens_token", "lens_token_probability"].join();
  const places = byId("every").checked ? data.tokens.flatMap((_, token) => Array.from({ length: L }, (_, layer) => [token, layer])) : [[state.token, state.layer]];
  byId("csv").value = [header, ...places.map(place => csvRow(...place)), ""].join("\n");
}

function listen() {
  byId("token").append(...data.tokens.map((piece, token) => new Option(`${token} ${readable(piece)}`, token)));
  byId("layer").append(...Array.from({ length: L }, (_, layer) => new Option(layer, layer)));
  byId("token").addEventListener("change", event => select(Number(event.target.value), state.layer));
  byId("layer").addEventListener("change", event => select(state.token, Number(event.target.value)));
  byId("every").addEventListener("change", drawCsv);
  byId("copy").addEventListener("click", () => {
    byId("csv").select();
    document.execCommand("copy"); // the only way to copy in a page that is opened from a file; else the text is selected
  });
  document.addEventListener("click", event => {
    const go = event.target.closest("button.go, button.token");
    if (go) select(Number(go.dataset.token), "layer" in go.dataset ? Number(go.dataset.layer) : state.layer);
  });
}

drawMaps();
drawLens();
drawCurves();
listen();
select(state.token, state.layer);
