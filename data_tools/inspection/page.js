"use strict";
// What a token's tooltip says, at once and without a mouse. Arrow keys walk through an answer; j and k through samples.
const readout = document.getElementById("readout");
let current = null;

function show(token) {
  if (current) current.classList.remove("at");
  current = token;
  readout.textContent = token ? token.title : "";
  if (token) {
    token.classList.add("at");
    token.scrollIntoView({ block: "nearest" });
  }
}

function sample(step) {
  const samples = [...document.querySelectorAll(".sample")];
  const passed = samples.filter((section) => section.getBoundingClientRect().top < 60).length;
  const next = samples[Math.min(Math.max(passed - 1 + step, 0), samples.length - 1)];
  if (next) {
    next.scrollIntoView();
    next.focus({ preventScroll: true });
  }
}

function walk(answer, key) {
  const tokens = [...answer.querySelectorAll("i")];
  const at = tokens.indexOf(current);
  const last = tokens.length - 1;
  const forward = getComputedStyle(answer).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
  if (key === "Home") return tokens[0];
  if (key === "End") return tokens[last];
  if (at < 0) return tokens[0];
  return tokens[key === forward ? Math.min(at + 1, last) : Math.max(at - 1, 0)];
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const answer = event.target.closest(".answer");
  if (event.key === "Escape") show(null);
  else if (event.key === "j") sample(1);
  else if (event.key === "k") sample(-1);
  else if (answer && ["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) {
    event.preventDefault();
    show(walk(answer, event.key));
  }
});
document.addEventListener("click", (event) => show(event.target.closest(".answer i")));
