// Draws the records in <script id="data">: one prompt and one interpretation prompt at a time, layers down, tokens
// across. `state` holds every choice of the reader; each handler changes it and redraws the parts that depend on it.

const data = JSON.parse(byId("data").textContent);
const rows = data.rows.map(cells => Object.fromEntries(data.columns.map((name, i) => [name, cells[i]])));
const readings = rows.filter(row => ["interpretation", "failed"].includes(row.kind));
const TOKEN_FULL = 0.5; // the score of a token with full colour
const RELEVANCY = "P(token | state inserted) − P(token | nothing inserted)";
const GAIN = "mean over its tokens, in nats, of ln(P with the state / P with";
// Choices for the colour of a cell: `of` returns the number of a row, `full` is the number with full colour.
const SHADES = {
  mean: { name: "mean relevancy", full: 0.3, of: meanRelevancy, says: `mean over its tokens of ${RELEVANCY}` },
  highest: { name: "highest relevancy", full: 1, of: highestRelevancy, says: `highest of its tokens' ${RELEVANCY}` },
  nothing: {
    name: "gain over nothing", full: 2, of: row => numeric(row.gain_over_nothing),
    says: `${GAIN} nothing inserted)`,
  },
  wrong: {
    name: "gain over a wrong state", full: 2, of: row => numeric(row.gain_over_wrong_vector),
    says: `${GAIN} another token's state)`,
  },
  text: {
    name: "gain over the text", full: 2, of: row => numeric(row.gain_over_text),
    says: `${GAIN} the prompt's own text, up to the token, in place of the state)`,
  },
};
// Only exceptions are marked: the rows that pass all controls if they are few, else those that do not.
// Texts that say nothing have a mark of their own.
const judged = readings.filter(row => typeof row.says_more_than_controls === "boolean" && !row.says_nothing);
const passed = judged.filter(row => row.says_more_than_controls);
const [MARKED, MARK] = 2 * passed.length <= judged.length ? [true, "◆"] : [false, "◇"];
const VERDICTS = { true: "all gains above 0", false: "not all gains above 0" };
// The controls of a token besides nothing inserted: the column of its probability, and how it is called.
const CONTROLS = [
  { column: "wrong", heading: "P wrong state", words: "with a wrong one" },
  { column: "own_text", heading: "P own text", words: "with the prompt's own text in its place" },
];
const SILENT = "∅"; // marks texts without words, or of one word or phrase over and over
const state = { prompt: 0, template: 0, shade: "mean", hidden: new Set(), layer: null, token: null, open: false };

// ---- Helpers

function distinct(values) {
  return [...new Set(values)].sort((a, b) => (a ?? -1) - (b ?? -1));
}

function signed(score, digits = 2) {
  if (score === null || Number.isNaN(score)) return "no score";
  const text = Math.abs(score).toFixed(digits);
  if (Number(text) === 0) return text;
  return (score < 0 ? "−" : "+") + text;
}

function scoresOf(row) { return row.signed.filter(one => one !== null).map(one => one / data.scale); }

function probability(scaled) { return scaled === null ? null : scaled / data.scale; }

function meanRelevancy(row) {
  const scores = scoresOf(row);
  return scores.length ? scores.reduce((sum, one) => sum + one, 0) / scores.length : null;
}

function highestRelevancy(row) {
  const scores = scoresOf(row);
  return scores.length ? Math.max(...scores) : null;
}

function numeric(value) { return typeof value === "number" ? value : null; }

function isMarked(row) { return row.says_more_than_controls === MARKED && !row.says_nothing; }

function marksOf(row) { return [...(isMarked(row) ? [MARK] : []), ...(row.says_nothing ? [SILENT] : [])]; }

function scoreOf(row) { return SHADES[state.shade].of(row); }

// The only place where a score becomes a colour; the style sheet defines the two hues.
function shadeBy(target, score, full) {
  if (score === null) return;
  target.classList.add(score < 0 ? "negative" : "positive");
  target.style.setProperty("--strength", Math.min(1, Math.abs(score) / full).toFixed(3));
}

function promptTokens(prompt = state.prompt) { return data.prompts[prompt].tokens.map(index => data.pieces[index]); }

function clipped(text, length) {
  const line = text.trim().replace(/\s+/gu, " ");
  return line.length > length ? [...line].slice(0, length).join("") + "…" : line;
}

// A token with visible spaces and line ends.
function pieceMarks(piece) {
  const marks = { " ": "·", "\n": "↵", "\t": "⇥", "\r": "␍" };
  const parts = piece.split(/([ \n\t\r])/u).filter(part => part !== "");
  return parts.map(part => (part in marks ? element("span", { className: "mark" }, marks[part]) : part));
}

function nameOf(layer, token) {
  const at = layer === null ? "No layer" : `Layer ${layer}`;
  return token === null ? at : `${at}, token ${token} “${promptTokens()[token]}”`;
}

// ---- Selection of rows

function ofChoice(row) { return row.prompt === state.prompt && row.template === state.template; }

function shown() { return readings.filter(row => ofChoice(row) && !state.hidden.has(row.layer)); }

function key(row) { return [row.prompt, row.template, row.layer, row.token].join(); }

const byPlace = new Map();
for (const row of readings) byPlace.set(key(row), [...(byPlace.get(key(row)) ?? []), row]);

function rowsAt(layer, token) { return byPlace.get(key({ ...state, layer, token })) ?? []; }

// The rows of other kinds to show with a cell: for each kind, those of its layer and of its token, if there are any.
function besides(layer, token) {
  const narrow = (some, name, value) => {
    const same = some.filter(row => row[name] === value);
    return same.length ? same : some;
  };
  const others = rows.filter(row => ofChoice(row) && !readings.includes(row));
  return distinct(others.map(row => row.kind)).flatMap(kind =>
    narrow(narrow(others.filter(row => row.kind === kind), "layer", layer), "token", token));
}

// ---- Filters

function promptLabel(prompt, index) {
  const read = readings.filter(row => row.prompt === index && row.token !== null).map(row => row.token);
  const words = read.length ? promptTokens(index).slice(Math.min(...read), Math.max(...read) + 1).join("") : prompt.text;
  return `${prompt.name}: ${clipped(words, 70)}`;
}

function drawFilters() {
  const options = (labels, values) => labels.map((label, i) => new Option(label, values[i]));
  byId("prompt").replaceChildren(...options(data.prompts.map(promptLabel), [...data.prompts.keys()]));
  byId("template").replaceChildren(...options(data.templates.map(one => one.name), [...data.templates.keys()]));
  const shades = Object.entries(SHADES).filter(([, shade]) => readings.some(row => shade.of(row) !== null));
  byId("shade").replaceChildren(...options(shades.map(([, shade]) => shade.name), shades.map(([name]) => name)));
  for (const id of ["prompt", "template", "shade"]) byId(id).value = state[id];
  byId("templates").hidden = data.templates.length === 1;
  byId("layers").replaceChildren(...distinct(readings.map(row => row.layer)).map(layerChip));
}

function layerChip(layer) {
  const box = element("input", { type: "checkbox", checked: !state.hidden.has(layer) });
  box.addEventListener("change", () => {
    if (box.checked) state.hidden.delete(layer); else state.hidden.add(layer);
    drawGrid();
  });
  return element("label", {}, box, element("span", {}, String(layer ?? "none")));
}

function hideLayers(layers) {
  state.hidden = new Set(layers);
  drawFilters();
  drawGrid();
}

function listenToFilters() {
  for (const id of ["prompt", "template"]) {
    byId(id).addEventListener("change", () => { state[id] = Number(byId(id).value); draw(); });
  }
  byId("shade").addEventListener("change", () => { state.shade = byId("shade").value; drawLegend(); drawGrid(); });
  byId("all-layers").addEventListener("click", () => hideLayers([]));
  byId("no-layers").addEventListener("click", () => hideLayers(readings.map(row => row.layer)));
}

// ---- The prompt and the scale

function drawTexts() {
  const read = new Set(readings.filter(ofChoice).map(row => row.token));
  const tokens = promptTokens().map((piece, index) => {
    const properties = { className: read.has(index) ? "read" : "", title: `token ${index}` };
    const made = element("span", { ...properties, "data-token": index }, ...withLineEnds(piece));
    if (read.has(index)) made.addEventListener("click", () => goTo(state.layer, index));
    return made;
  });
  byId("tokens").replaceChildren(...folded(tokens, [...read].filter(token => token !== null)));
  const output = data.prompts[state.prompt].output;
  byId("continuation").textContent = output ? `The model continues: ${output.trim()}` : "";
  byId("template-text").textContent = data.templates[state.template].text;
}

// The tokens from the first to the last that was read; the others, such as a chat template, behind buttons.
function folded(tokens, read) {
  const fold = hidden => {
    if (hidden.length < 4) return hidden;
    const button = element("button", { type: "button", className: "fold", title: "Show these tokens" },
      `… ${hidden.length} tokens`);
    button.addEventListener("click", () => { button.replaceWith(...hidden); mark(); });
    return [button];
  };
  if (!read.length) return tokens;
  const [first, last] = [Math.min(...read), Math.max(...read) + 1];
  return [...fold(tokens.slice(0, first)), ...tokens.slice(first, last), ...fold(tokens.slice(last))];
}

function drawLegend() {
  const shade = SHADES[state.shade];
  const ends = { "legend-low": -shade.full, "legend-high": shade.full, "token-low": -TOKEN_FULL, "token-high": TOKEN_FULL };
  for (const [id, end] of Object.entries(ends)) byId(id).textContent = signed(end, 1);
  byId("legend-words").textContent = `Colour: ${shade.says}`;
  byId("token-high").textContent += ` ${RELEVANCY}`;
  const controls = [["gain_over_nothing", "with nothing"], ["gain_over_wrong_vector", "with another token’s state"],
    ["gain_over_text", "with the prompt’s own text in its place"]];
  const named = controls.filter(([name]) => readings.some(row => numeric(row[name]) !== null)).map(([, words]) => words);
  byId("legend-own").textContent = MARKED
    ? `${MARK} ${VERDICTS[MARKED]}: more likely with its own state than ${named.join(", and ")}`
    : `${MARK} ${VERDICTS[MARKED]}: not more likely with its own state than ${named.join(", or ")}`;
  byId("legend-own").hidden = !judged.some(isMarked);
  byId("legend-silent").textContent = `${SILENT} says nothing: no words, or one word or phrase over and over`;
  byId("legend-silent").hidden = !readings.some(row => row.says_nothing);
}

// ---- The grid

function drawGrid() {
  const visible = shown();
  const layers = distinct(visible.map(row => row.layer));
  const tokens = distinct(visible.map(row => row.token));
  if (!layers.includes(state.layer)) state.layer = layers[0] ?? null;
  if (!tokens.includes(state.token)) state.token = tokens[0] ?? null;
  byId("grid").replaceChildren(gridHead(tokens), element("tbody", {}, ...layers.map(layer => gridRow(layer, tokens))));
  byId("frame").hidden = !visible.length;
  byId("nothing").hidden = visible.length > 0;
  byId("nothing").textContent = readings.some(ofChoice)
    ? "No layer is selected." : "This prompt has no interpretations with this interpretation prompt.";
  if (visible.length) showOpen(); else close();
}

function gridHead(tokens) {
  const headings = tokens.map(token => {
    const piece = token === null ? "vector" : promptTokens()[token];
    const position = element("span", { className: "position" }, String(token ?? ""));
    return element("th", { scope: "col", role: "columnheader" }, position,
      element("span", { className: "piece" }, ...pieceMarks(piece)));
  });
  const corner = element("th", { scope: "col", role: "columnheader" }, "layer");
  return element("thead", {}, element("tr", { role: "row" }, corner, ...headings));
}

function gridRow(layer, tokens) {
  const heading = element("th", { scope: "row", role: "rowheader" }, String(layer ?? "none"));
  return element("tr", { role: "row" }, heading, ...tokens.map(token => gridCell(layer, token)));
}

function gridCell(layer, token) {
  const found = rowsAt(layer, token);
  const cell = element("td", { role: "gridcell", tabIndex: -1 });
  cell.dataset.layer = layer;
  cell.dataset.token = token;
  if (!found.length) {
    cell.className = "missing";
    cell.setAttribute("aria-label", "not interpreted");
    return cell;
  }
  const score = scoreOf(found[0]);
  const marks = marksOf(found[0]).map(one => ` ${one}`).join("");
  const more = found.length > 1 ? ` and ${found.length - 1} more` : "";
  cell.append(firstWords(found[0]), element("span", { className: "score" }, signed(score) + marks + more));
  shadeBy(cell, score, SHADES[state.shade].full);
  return cell;
}

function firstWords(row) {
  const words = clipped(row.text, 90);
  if (words) return element("span", { className: "words", dir: "auto" }, words);
  const instead = row.kind === "failed" ? ["failed"] : row.text ? pieceMarks(row.text.slice(0, 90)) : ["empty"];
  return element("span", { className: "words wordless" }, ...instead);
}

function cellAt(layer, token) {
  return byId("grid").querySelector(`td[data-layer="${layer}"][data-token="${token}"]`);
}

// ---- Moving and opening

// Make the current cell reachable by Tab; if it is open, mark it and its token.
function mark() {
  const chosen = cellAt(state.layer, state.token);
  for (const cell of byId("grid").querySelectorAll("td")) {
    const here = cell === chosen;
    cell.tabIndex = here ? 0 : -1;
    cell.setAttribute("aria-selected", here && state.open);
  }
  for (const token of byId("tokens").children) {
    const here = token.dataset.token === String(state.token);
    token.classList.toggle("here", here && state.open);
    if (here) byId("tokens").parentElement.scrollTop = token.offsetTop - token.offsetHeight;
  }
}

function goTo(layer, token) {
  state.layer = layer;
  state.token = token;
  const cell = cellAt(layer, token);
  cell?.focus({ preventScroll: true });
  showOpen();
  cell?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function open(layer, token) {
  const first = !state.open;
  state.open = true;
  goTo(layer, token);
  if (first) byId("frame").scrollIntoView({ block: "nearest" }); // keep the grid visible above the dock
}

function close() {
  const inside = byId("dock").contains(document.activeElement);
  state.open = false;
  showOpen();
  if (inside) cellAt(state.layer, state.token)?.focus();
}

// Update the dock to the state.
function showOpen() {
  mark();
  document.documentElement.classList.toggle("open", state.open);
  byId("dock").hidden = !state.open;
  if (state.open) drawDock();
  remember();
}

function listenToGrid() {
  byId("grid").addEventListener("click", event => {
    const cell = event.target.closest("td");
    if (cell) open(...place(cell));
  });
  byId("grid").addEventListener("keydown", event => {
    const cell = event.target.closest("td");
    if (!cell) return;
    if (event.key === "Enter" || event.key === " ") openOrEnter(...place(cell));
    else if (!moveFrom(cell, event)) return;
    event.preventDefault();
  });
  byId("close").addEventListener("click", close);
  document.addEventListener("keydown", event => { if (event.key === "Escape" && state.open) close(); });
}

function place(cell) {
  return [cell.dataset.layer, cell.dataset.token].map(text => (text === "null" ? null : Number(text)));
}

// Enter opens a cell; if the cell is open, Enter moves the focus into the dock.
function openOrEnter(layer, token) {
  const entered = state.open && state.layer === layer && state.token === token;
  open(layer, token);
  if (entered) byId("dock-title").focus();
}

function moveFrom(cell, event) {
  const table = [...byId("grid").tBodies[0].rows].map(row => [...row.querySelectorAll("td")]);
  const down = table.findIndex(row => row.includes(cell));
  const across = table[down].indexOf(cell);
  const [last, end] = [table.length - 1, table[0].length - 1];
  const to = {
    ArrowUp: [down - 1, across],
    ArrowDown: [down + 1, across],
    ArrowLeft: [down, across - 1],
    ArrowRight: [down, across + 1],
    Home: [event.ctrlKey ? 0 : down, 0],
    End: [event.ctrlKey ? last : down, end],
    PageUp: [0, across],
    PageDown: [last, across],
  }[event.key];
  if (!to) return false;
  const within = (value, most) => Math.min(Math.max(value, 0), most);
  goTo(...place(table[within(to[0], last)][within(to[1], end)]));
  return true;
}

// ---- The dock: the full text of a cell, and the controls of the same prompt

function drawDock() {
  const own = rowsAt(state.layer, state.token);
  byId("dock-title").replaceChildren(...pieceTitle());
  const none = own.length ? [] : [element("p", { className: "note" }, "This state was not interpreted.")];
  const cards = [...own, ...besides(state.layer, state.token)].map(card);
  byId("cards").replaceChildren(...none, ...cards);
  byId("dock").scrollTop = 0;
  const texts = own.map(row => row.text).join("; ");
  byId("announcement").textContent = `${nameOf(state.layer, state.token)}: ${texts || "empty"}`;
}

function pieceTitle() {
  const at = state.layer === null ? "No layer" : `Layer ${state.layer}`;
  if (state.token === null) return [at];
  const piece = element("span", { className: "piece" }, ...pieceMarks(promptTokens()[state.token]));
  return [`${at}, token ${state.token} `, piece];
}

function card(row) {
  return element("article", { className: readings.includes(row) ? "card own" : "card" },
    element("h3", {}, cardTitle(row)),
    element("p", { className: "figures" }, figures(row)),
    ...shadedText(row),
    scoreTable(row),
    furtherValues(row));
}

function cardTitle(row) {
  if (row.kind === "interpretation") return "Interpretation";
  if (row.kind === "failed") return "Failed";
  if (row.kind === "control") return "Control: nothing inserted";
  const name = row.kind.replaceAll("_", " ");
  const from = row.layer === null && row.token === null ? "" : ` (${nameOf(row.layer, row.token)})`;
  return name.charAt(0).toUpperCase() + name.slice(1) + from;
}

function figures(row) {
  if (row.kind === "failed") return "This state could not be interpreted: it is not finite.";
  if (!row.ids.length) return "0 tokens: the model generated nothing";
  const parts = [`${row.ids.length} token${row.ids.length === 1 ? "" : "s"}`];
  if (row.kind !== "control") {
    const shades = Object.values(SHADES).filter(shade => shade.of(row) !== null);
    parts.push(...shades.map(shade => `${shade.name} ${signed(shade.of(row))}`));
  }
  if (row.says_nothing) parts.push(`${SILENT} says nothing`);
  else if (judged.includes(row)) parts.push(`${isMarked(row) ? `${MARK} ` : ""}${VERDICTS[row.says_more_than_controls]}`);
  return parts.join(" · ");
}

// The text; the characters of each token have the colour of its score.
function shadedText(row) {
  const spans = slices(row.text, piecesOf(row));
  if (spans === null) return plainText(row);
  const shaded = spans.map(([text, tokens]) => {
    const span = element("span", { title: tokens.map(i => tokenTitle(row, i)).join("\n") }, ...withLineEnds(text));
    const scores = tokens.map(i => probability(row.signed[i])).filter(score => score !== null);
    if (scores.length) shadeBy(span, scores.reduce((sum, one) => sum + one, 0) / scores.length, TOKEN_FULL);
    return span;
  });
  return [element("p", { className: "reading", dir: "auto" }, ...shaded)];
}

// Cut a text at the ends of its tokens: [[slice, tokens], ...], or null if the tokens cannot be aligned with the text.
// The text of a single token may lack its leading space, or be a part of a character (\ufffd): such tokens share a slice.
function slices(text, pieces) {
  const cut = [];
  let [at, parts] = [0, []]; // end of the last slice, and the tokens after it that are not aligned yet
  for (const [i, piece] of pieces.entries()) {
    const [start, end] = placeOf(piece, text, at, parts.length > 0) ?? [];
    if (end === undefined) {
      if (!parts.length && !isPart(piece)) return null;
      parts.push(i);
      continue;
    }
    if (parts.length) cut.push([text.slice(at, start), parts]);
    cut.push([text.slice(start, end), [i]]);
    [at, parts] = [end, []];
  }
  return at < text.length || parts.length ? [...cut, [text.slice(at), parts]] : cut;
}

function isPart(piece) { return piece.includes("\ufffd"); }

// [start, end] of a piece in a text: exactly at a position, with spaces that the piece lacks, or anywhere after it.
function placeOf(piece, text, at, behind) {
  if (isPart(piece)) return null;
  const bare = piece.trimStart();
  if (behind) {
    const found = bare ? [piece, bare].find(one => text.includes(one, at + 1)) : undefined;
    const start = text.indexOf(found, at + 1);
    return found === undefined ? null : [start, start + found.length];
  }
  if (text.startsWith(piece, at)) return [at, at + piece.length];
  const start = at + text.slice(at).search(/\S|$/u);
  return text.startsWith(bare, start) ? [at, start + bare.length] : null;
}

// If the tokens cannot be aligned with the text, boxes with the scores follow the text.
function plainText(row) {
  const boxes = row.signed.map((score, i) => {
    const box = element("span", { title: tokenTitle(row, i) }, String(i + 1));
    shadeBy(box, probability(score), TOKEN_FULL);
    return box;
  });
  const text = element("p", { className: "reading", dir: "auto" }, ...withLineEnds(row.text));
  if (row.kind === "control" || !boxes.length) return [text];
  const note = "One box per token, in order: the tokens cannot be aligned with this text.";
  return [text, element("div", { className: "strip" }, ...boxes), element("p", { className: "quiet" }, note)];
}

function piecesOf(row) { return row.pieces.map(index => data.pieces[index]); }

function withLineEnds(text) {
  return text.split(/(\n)/u).filter(part => part !== "").map(part =>
    (part === "\n" ? element("span", { className: "newline" }, part) : part));
}

// P of a token with the state, without it, their difference, and P under each further control that the row has.
function tokenScores(row, i) {
  const [inserted, difference] = [row.with[i], row.signed[i]].map(probability);
  const without = inserted === null || difference === null ? null : Math.max(0, inserted - difference);
  const further = furtherControls(row).map(control => decimals(probability(row[control.column][i])));
  return [decimals(inserted), decimals(without), signed(difference, 3), ...further];
}

function decimals(value) { return value === null ? "no score" : value.toFixed(3); }

function furtherControls(row) { return CONTROLS.filter(control => row[control.column].length); }

function tokenTitle(row, i) {
  const [inserted, without, difference, ...others] = tokenScores(row, i);
  const further = furtherControls(row).map((control, n) => `, ${others[n]} ${control.words}`).join("");
  return `token ${i + 1}, id ${row.ids[i]}\n${difference}: ${inserted} with the state, ${without} without${further}`;
}

function scoreTable(row) {
  if (!row.ids.length) return null;
  const line = (tag, texts) => element("tr", {}, ...texts.map(text => element(tag, {}, ...[text].flat())));
  const labels = piecesOf(row).map(piece => element("span", { className: "piece" }, ...pieceMarks(piece)));
  const body = labels.map((label, i) => line("td", [label, ...tokenScores(row, i)]));
  const further = furtherControls(row).map(control => control.heading);
  const head = line("th", ["token", "P inserted", "P nothing inserted", "relevancy", ...further]);
  return element("details", {}, element("summary", {}, "Scores of each token"), element("table", {}, head, ...body));
}

function furtherValues(row) {
  const elsewhere = [
    "gain_over_nothing", "gain_over_wrong_vector", "gain_over_text", "says_nothing", "says_more_than_controls",
  ];
  const names = data.further.filter(name => !elsewhere.includes(name) && row[name] !== null && row[name] !== "");
  if (!names.length) return null;
  return element("dl", {}, ...names.map(name =>
    element("div", {}, ...labelled(name, row[name]))));
}

function labelled(name, value) {
  const [label, text] = name === "wrong_token_idx" ? ["wrong state", `of token ${value} “${promptTokens()[value]}”`]
    : [name.replaceAll("_", " "), String(value)];
  return [element("dt", {}, label), element("dd", {}, text)];
}

// ---- The address holds the state, so that a reload or a shared link restores it

let waiting = 0;

// Delayed: while a key is held, moves are faster than browsers allow changes of the address.
function remember() {
  clearTimeout(waiting);
  waiting = setTimeout(writeAddress, 200);
}

function writeAddress() {
  const choices = new URLSearchParams({ prompt: state.prompt, template: state.template, shade: state.shade });
  if (state.hidden.size) choices.set("hidden", [...state.hidden].join());
  if (state.open) choices.set("open", [state.layer, state.token].join());
  history.replaceState(null, "", `#${choices}`);
}

function readAddress() {
  const choices = new URLSearchParams(location.hash.slice(1));
  const number = (name, most) => Math.min(Math.max(Math.trunc(Number(choices.get(name))) || 0, 0), most);
  const numbers = name => (choices.get(name) ?? "").split(",").map(text => (text === "" ? null : Number(text)));
  state.prompt = number("prompt", data.prompts.length - 1);
  state.template = number("template", data.templates.length - 1);
  if (Object.hasOwn(SHADES, choices.get("shade"))) state.shade = choices.get("shade");
  state.hidden = new Set(choices.has("hidden") ? numbers("hidden") : []);
  state.open = choices.has("open");
  if (state.open) [state.layer, state.token] = numbers("open");
}

function draw() {
  drawTexts();
  drawLegend();
  drawGrid();
}

function start() {
  readAddress();
  drawFilters();
  draw();
  if (!state.open) return;
  state.open = false;
  open(state.layer, state.token);
}

listenToFilters();
listenToGrid();
window.addEventListener("hashchange", start);
start();
