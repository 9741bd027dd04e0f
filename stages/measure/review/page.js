"use strict";

// The page of `tunetrail review`.
const SCALES = ["relevance", "accuracy", "coherence", "style"];
const unsaved = new Set();
let timer = 0;
let saving = Promise.resolve();

const answered = (row) => row.answer !== null && row.answer.best !== null;
const answerOf = (row) => row.answer ?? { best: null, comment: "", scales: row.cards.map(() => ({})) };

function makeCard(text, place) {
  const card = at("card").content.cloneNode(true);
  card.querySelector(".name").textContent = `Answer ${place + 1}`;
  card.querySelector("kbd").textContent = String(place + 1);
  put(card.querySelector(".text"), text);
  card.querySelector("input").addEventListener("change", () => toggle(place));
  card.querySelector(".scales").append(...SCALES.map((name) => makeScale(name, place)));
  return card;
}

function makeScale(name, place) {
  const scale = at("scale").content.cloneNode(true);
  scale.querySelector(".name").textContent = name[0].toUpperCase() + name.slice(1);
  const choice = scale.querySelector("select");
  choice.setAttribute("aria-label", `${name} of answer ${place + 1}, 1 to 5`);
  choice.value = String(answerOf(rows[current]).scales[place][name] ?? "");
  choice.addEventListener("change", () => rate(name, place, choice.value));
  return scale;
}

function rate(name, place, value) {
  const row = rows[current];
  const { best, comment: text, scales } = answerOf(row);
  const { [name]: _, ...others } = scales[place];
  const rated = value === "" ? others : { ...others, [name]: Number(value) };
  row.answer = { best, comment: text, scales: scales.map((one, index) => (index === place ? rated : one)) };
  if (answered(row)) keep(current);
  else say("Ratings are saved together with a choice");
}

// What is chosen.
function marked(row) {
  const best = answered(row) ? row.answer.best : null;
  at("cards").querySelectorAll("input").forEach((box, place) => { box.checked = best !== null && best.includes(place); });
  at("tie").setAttribute("aria-pressed", String(best !== null && best.length === row.cards.length));
  at("bad").setAttribute("aria-pressed", String(best !== null && best.length === 0));
}

function choose(best) {
  const row = rows[current];
  row.answer = { ...answerOf(row), best, comment: at("comment").value };
  mark();
  keep(current);
}

function toggle(place) {
  const row = rows[current];
  if (place >= row.cards.length) return;
  const best = new Set(answered(row) ? row.answer.best : []);
  if (!best.delete(place)) best.add(place);
  choose(best.size ? [...best].sort() : null);
}

function pressed(id) {
  return at(id).getAttribute("aria-pressed") === "true";
}

function comment() {
  clearTimeout(timer);
  const row = rows[current];
  const text = at("comment").value;
  if (text === answerOf(row).comment) return;
  row.answer = { ...answerOf(row), comment: text };
  if (answered(row)) keep(current);
  else say("A comment is saved together with a choice");
}

// One message after the other, so that the last choice is the one that stays.
function keep(number) {
  unsaved.add(number);
  tell("Saving");
  saving = saving.then(saveAll);
}

function tell(text, wrong = false) {
  say(text, wrong);
  at("again").hidden = !wrong;
}

async function saveAll() {
  for (const number of [...unsaved]) {
    const said = rows[number].answer;
    try {
      await send("answer", { number, ...said }, true);
      if (rows[number].answer === said) unsaved.delete(number);
    } catch (error) {
      tell(`Not saved: ${reason(error)}`, true);
      return;
    }
  }
  if (!unsaved.size) tell("Saved");
}

const keys = {
  ...moves,
  t: () => at("tie").click(),
  b: () => at("bad").click(),
  c: () => at("comment").focus(),
  Enter: moves.ArrowRight,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !rows.length || event.target.closest("select")) return;
  if (event.target === at("comment")) {
    if (event.key === "Escape") at("row").focus();
    return;
  }
  if (event.key === "Enter" && event.target.closest("button, summary")) return;
  const act = /^[1-9]$/.test(event.key) ? () => toggle(Number(event.key) - 1) : keys[keyOf(event)];
  if (!act) return;
  event.preventDefault();
  act();
});

at("tie").addEventListener("click", () => choose(pressed("tie") ? null : rows[current].cards.map((_, place) => place)));
at("bad").addEventListener("click", () => choose(pressed("bad") ? null : []));
at("comment").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(comment, 600); });
at("comment").addEventListener("blur", comment);
at("again").addEventListener("click", () => { saving = saving.then(saveAll); });
window.addEventListener("pagehide", comment);
window.addEventListener("beforeunload", (event) => { if (unsaved.size) event.preventDefault(); });

begin({
  verb: "review",
  who: "reviewer",
  word: "answered",
  parts: ["instruction", "prompt", "reference"],
  done: answered,
  fill: (row) => {
    at("cards").replaceChildren(...row.cards.map(makeCard));
    at("comment").value = answerOf(row).comment;
  },
  marked,
  leave: comment,
});
