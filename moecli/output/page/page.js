"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("layer");
const tokens = [...document.querySelectorAll(".t")];
const status = document.getElementById("token");
let token = -1;

const layer = () => data.layers[Number(slider.value)];
const kind = (at, expert) => at.coloured.indexOf(expert);
const mark = (at, expert) =>
  !at.letters ? String(expert) : kind(at, expert) < 0 ? "·" : "abcdefgh"[kind(at, expert)];
const first = (at, place) => at.chosen[place * at.active];

function choices(at, place) {
  const experts = at.chosen.slice(place * at.active, (place + 1) * at.active);
  return experts.map((expert, rank) =>
    at.weights ? `expert ${expert} (weight ${(at.weights[place * at.active + rank] / 1000).toFixed(3)})` : `expert ${expert}`
  ).join(", ");
}

function describe() {
  if (token < 0) return;
  const at = layer();
  const path = data.layers.map((one) => first(one, token)).join(" ");
  status.textContent = `${tokens[token].dataset.text}: layer ${at.layer}: ${choices(at, token)}. First choices in all layers: ${path}`;
}

function legend(at) {
  const chips = at.coloured.map((expert, index) => {
    const chip = document.createElement("span");
    chip.className = `k${index}`;
    chip.textContent = at.letters ? `${mark(at, expert)} ${expert}` : String(expert);
    return chip;
  });
  if (at.experts > at.coloured.length) {
    const rest = document.createElement("span");
    rest.className = "k";
    rest.textContent = "others";
    chips.push(rest);
  }
  document.getElementById("legend").replaceChildren(...chips);
}

function outline(index) {
  for (const old of document.querySelectorAll(".row")) old.remove();
  const picture = document.querySelector("#heatmap svg");
  for (const [number, block] of data.blocks.entries()) {
    const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const cells = data.heats[number].rows[index].length;
    box.setAttribute("class", "row");
    box.setAttribute("x", block.x - 1);
    box.setAttribute("y", block.y + index * block.height - 1);
    box.setAttribute("width", cells * block.width + 1);
    box.setAttribute("height", block.height + 1);
    picture.append(box);
  }
}

function show() {
  const at = layer();
  document.getElementById("which").textContent = at.layer;
  slider.setAttribute("aria-valuetext", `layer ${at.layer}`);
  document.getElementById("figures").textContent = at.figures;
  tokens.forEach((span, place) => {
    const colour = kind(at, first(at, place));
    span.className = colour < 0 ? "t k" : `t k${colour}`;
    span.lastChild.textContent = mark(at, first(at, place));
  });
  legend(at);
  outline(Number(slider.value));
  describe();
}

function select(place, focus) {
  if (place < 0 || place >= tokens.length) return;
  tokens[Math.max(token, 0)].tabIndex = -1;
  token = place;
  tokens[token].tabIndex = 0;
  if (focus) tokens[token].focus();
  describe();
}

function pointed(event) {
  const picture = document.querySelector("#heatmap svg");
  const spot = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
  for (const [number, block] of data.blocks.entries()) {
    const heat = data.heats[number];
    const row = Math.floor((spot.y - block.y) / block.height);
    const column = Math.floor((spot.x - block.x) / block.width);
    const value = heat.rows[row]?.[column];
    if (value === undefined) continue;
    const who = heat.experts ? `expert ${heat.experts[row][column]}, rank ${column + 1}` : `expert ${column}`;
    return { row, words: `${heat.title ? heat.title + ", " : ""}layer ${data.layers[row].layer}, ${who}: ` +
      (value ? `${value.toFixed(2)}x` : "no token") };
  }
  return null;
}

tokens.forEach((span, place) => {
  span.dataset.place = place;
  span.tabIndex = place ? -1 : 0;
});
document.addEventListener("pointerover", (event) => {
  const span = event.target.closest?.(".t");
  if (span) select(Number(span.dataset.place), false);
});
document.addEventListener("focusin", (event) => {
  if (event.target.matches(".t")) select(Number(event.target.dataset.place), false);
});
document.addEventListener("keydown", (event) => {
  if (!event.target.matches(".t")) return;
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const turn = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (step) select(token + step, true);
  if (turn) {
    slider.value = Number(slider.value) + turn;
    show();
  }
  if (step || turn) event.preventDefault();
});
const heatmap = document.getElementById("heatmap");
heatmap.addEventListener("pointermove", (event) => {
  const found = pointed(event);
  document.getElementById("cell").textContent = found ? found.words : "\u00a0";
});
heatmap.addEventListener("click", (event) => {
  const found = pointed(event);
  if (found) {
    slider.value = found.row;
    show();
  }
});
slider.addEventListener("input", show);
slider.disabled = false;
show();
