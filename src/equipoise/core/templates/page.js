(() => {
  "use strict";
  const views = [];
  let pinned = "";

  // An arm in focus is drawn at full strength in every figure, the others as shadows.
  const focus = (arm) => {
    for (const view of views) view.signal("focus", arm).runAsync();
  };
  for (const button of document.querySelectorAll("[data-arm]")) {
    const arm = button.dataset.arm;
    button.addEventListener("pointerenter", () => focus(arm));
    button.addEventListener("pointerleave", () => focus(pinned));
    button.addEventListener("click", () => {
      pinned = pinned === arm ? "" : arm;
      for (const other of document.querySelectorAll("[data-arm]")) {
        other.setAttribute("aria-pressed", String(other.dataset.arm === pinned));
      }
      focus(pinned);
    });
  }

  // ast: expressions are interpreted, not compiled, so that the page needs no eval.
  const options = {
    ast: true, actions: false, defaultStyle: false, mode: "vega-lite", renderer: "svg",
    tooltip: { disableDefaultStyle: true },
  };
  for (const place of document.querySelectorAll("[data-chart]")) {
    const spec = JSON.parse(document.getElementById(place.dataset.chart).textContent);
    window.vegaEmbed(place, spec, options).then(({ view }) => {
      if ((spec.params || []).some(({ name }) => name === "focus")) views.push(view);
    }, (error) => {
      place.textContent = "This figure could not be drawn; its numbers stand below.";
      console.error(error);
    });
  }
})();
