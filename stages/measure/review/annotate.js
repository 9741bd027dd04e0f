"use strict";

// The page of `tunetrail annotate`.
const drafts = new Map(); // what is typed and not saved, by row
let timer = 0;

function tell(problem) {
  at("problem").textContent = problem === null ? "Keeps the contract" : problem;
  at("problem").classList.toggle("wrong", problem !== null);
  at("editor").setAttribute("aria-invalid", String(problem !== null));
}

async function check() {
  const number = current;
  const completion = at("editor").value;
  try {
    const { problem } = await send("check", { number, completion });
    if (number === current && completion === at("editor").value) tell(problem);
  } catch (error) {
    say(`Not checked: ${reason(error)}`, true);
  }
}

async function keep(skipped, back = false) {
  const number = current;
  const completion = at("editor").value;
  say("Saving");
  try {
    const { problem } = await send("answer", { number, completion, skipped, back });
    if (problem !== null) {
      tell(problem);
      say("Not saved: the answer breaks the contract", true);
      return;
    }
  } catch (error) {
    say(`Not saved: ${reason(error)}`, true);
    return;
  }
  rows[number].done = back ? null : { completion: completion.trim(), skipped };
  drafts.delete(number);
  mark();
  say(back ? "Taken back" : skipped === null ? "Saved" : "Skipped");
  if (!back && number === current) goOpen();
}

function skip() {
  const text = at("reason").value.trim();
  if (text) keep(text);
  else say("Skipping needs a reason", true);
}

const keys = {
  ...moves,
  e: () => at("editor").focus(),
  s: () => at("reason").focus(),
};

document.addEventListener("keydown", (event) => {
  if (!rows.length || event.isComposing) return;
  const typing = event.target === at("editor") || event.target === at("reason");
  let act = null;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) act = () => keep(null);
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (typing && event.key === "Escape") act = () => at("row").focus();
  else if (event.target === at("reason") && event.key === "Enter") act = skip;
  else if (!typing) act = keys[keyOf(event)];
  if (!act) return;
  event.preventDefault();
  act();
});

at("editor").addEventListener("input", () => {
  drafts.set(current, at("editor").value);
  clearTimeout(timer);
  timer = setTimeout(check, 150);
});
at("save").addEventListener("click", () => keep(null));
at("back").addEventListener("click", () => keep(null, true));
at("skip").addEventListener("click", skip);
window.addEventListener("beforeunload", (event) => { if (drafts.size) event.preventDefault(); });

begin({
  verb: "annotate",
  who: "annotator",
  word: "done",
  parts: ["instruction", "prompt", "answer", "reasons"],
  done: (row) => row.done,
  fill: (row) => {
    at("editor").value = drafts.get(current) ?? (row.done && !row.done.skipped ? row.done.completion : row.draft);
    at("reason").value = row.done?.skipped ?? "";
    check();
  },
  marked: (row) => { at("back").disabled = !row.done; },
  leave: () => {},
});
