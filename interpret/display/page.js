// Readout and keyboard navigation in the heat maps of a result. The page shows every number without this script too.

const readout = byId("readout");
const MOVES = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  Home: [0, -Infinity], End: [0, Infinity], PageUp: [-Infinity, 0], PageDown: [Infinity, 0],
};
let marked = [];
let mouse = "";

// The rows of a grid that have scores, as lists of cells.
function rowsOf(table) {
  return [...table.querySelectorAll("tbody tr:not(.band)")].map(row => [...row.querySelectorAll("td")]);
}

function within(index, length) { return Math.max(0, Math.min(length - 1, index)); }

// The cell a key moves to: the next cell in that direction that has a score, or the last one for Home, End and Page keys.
function reached(table, cell, [down, right]) {
  const rows = rowsOf(table);
  const row = rows.findIndex(cells => cells.includes(cell));
  const column = rows[row].indexOf(cell);
  const line = down ? rows.map(cells => cells[column]) : rows[row];
  const at = down ? row : column;
  const rest = down + right > 0 ? line.slice(at + 1) : line.slice(0, at).reverse();
  const scored = rest.filter(one => "value" in one.dataset);
  return scored[within(Number.isFinite(down + right) ? 0 : scored.length - 1, scored.length)] ?? cell;
}

function headingsOf(cell) {
  const table = cell.closest("table");
  return [cell.parentElement.querySelector("th"), table.tHead.rows[0].cells[cell.cellIndex]];
}

function nameOf(heading, what) {
  const position = heading.querySelector(".position")?.textContent;
  const text = heading.querySelector(".piece").textContent;
  return position === undefined ? `${what} ${text}` : `${what} ${position} “${text}”`;
}

function read(cell) {
  const [row, column] = headingsOf(cell);
  const table = cell.closest("table");
  const about = cell.closest("figure").querySelector(".about");
  const down = nameOf(row, table.tHead.rows[0].cells[0].textContent.trim());
  const attributed = cell.closest(".input").querySelector(".target") !== null;
  const across = `${attributed ? "for" : "at"} ${nameOf(column, table.dataset.across)}`;
  const end = about === null ? "" : ` for “${about.textContent}”`;
  for (const one of marked) one.classList.remove("here");
  marked = [row, column];
  for (const one of marked) one.classList.add("here");
  readout.textContent = `${down} ${across}${end}: ${cell.dataset.value}`;
}

function scored(target) { return target.closest?.("td[data-value]"); }

// Visible from the start: if it appeared under the mouse, it would cover the cell that is pointed at.
readout.hidden = false;

// One cell of each grid can be reached with Tab; the arrow keys move from there.
for (const table of document.querySelectorAll("table")) {
  const first = table.querySelector("td[data-value]");
  if (first) first.tabIndex = 0;
  table.addEventListener("focusin", event => {
    const cell = scored(event.target);
    if (!cell) return;
    for (const one of table.querySelectorAll('td[tabindex="0"]')) one.tabIndex = -1;
    cell.tabIndex = 0;
    read(cell);
  });
  table.addEventListener("mousemove", event => {
    // Browsers also send this event when the page scrolls under a mouse that does not move.
    const place = `${event.clientX} ${event.clientY}`;
    if (place !== mouse && scored(event.target)) read(scored(event.target));
    mouse = place;
  });
  table.addEventListener("click", event => {
    const cell = scored(event.target);
    if (cell) { cell.tabIndex = 0; cell.focus(); }
  });
  table.addEventListener("keydown", event => {
    const cell = scored(event.target);
    if (!cell || !(event.key in MOVES) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const next = reached(table, cell, MOVES[event.key]);
    next.tabIndex = 0;
    next.focus();
  });
}

// If each grid belongs to one attributed token, show one token at a time.
for (const section of document.querySelectorAll(".input")) {
  const figures = [...section.querySelectorAll("figure[data-step]")];
  const steps = new Map(figures.map(one => [one.dataset.step, one.querySelector(".about").textContent]));
  if (steps.size < 2) continue;
  const choice = document.createElement("select");
  for (const [step, text] of steps) choice.append(new Option(`${step} ${text}`, step));
  const show = () => { for (const one of figures) one.hidden = one.dataset.step !== choice.value; };
  choice.addEventListener("change", show);
  show();
  const label = document.createElement("label");
  label.append("Attributed token ", choice);
  section.querySelector(".tools").prepend(label);
}

// A sentence is coloured by the scores for one of its attributed tokens: the first one, until another is chosen.
for (const section of document.querySelectorAll(".input")) {
  const targets = [...section.querySelectorAll(".sentence .target")];
  if (targets.length < 2) continue;
  const rows = rowsOf(section.querySelector("table"));
  const choose = target => {
    for (const one of targets) one.classList.toggle("chosen", one === target);
    for (const one of targets) one.setAttribute("aria-pressed", one === target);
    for (const piece of section.querySelectorAll(".sentence [data-row]")) {
      const cell = rows[piece.dataset.row][target.dataset.column];
      const shades = [...piece.classList].filter(name => /^[np]\d+$/.test(name));
      piece.classList.remove(...shades);
      if ("value" in cell.dataset) piece.classList.add(...cell.classList);
    }
  };
  for (const target of targets) {
    target.tabIndex = 0;
    target.setAttribute("role", "button");
    target.addEventListener("click", () => choose(target));
    target.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(target);
    });
  }
  choose(targets[0]);
  const help = document.createElement("span");
  help.className = "quiet";
  help.textContent = "The text is coloured by the scores for the framed token; click another underlined one.";
  section.querySelector(".tools").append(help);
}
