// Keeps a report up to date while its run goes on. Inlined after report.js by lib/report/dashboard.ts.
(() => {
  "use strict";
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  const bar = document.createElement("div");
  bar.id = "live";
  const status = document.createElement("span");
  status.id = "live-status";
  status.setAttribute("role", "status");
  const buttons = ["save", "stop"].map((action) => {
    const button = document.createElement("button");
    button.id = `live-${action}`;
    button.textContent = action === "save" ? "Save now" : "Stop and save";
    button.disabled = token === null;
    if (token === null) button.title = "Open the address that the terminal shows, with its token";
    button.addEventListener("click", async () => {
      if (action === "stop" && !confirm("Finish the step, save, and end the run?")) return;
      const headers = { authorization: `Bearer ${token}` };
      const answer = await fetch(action, { method: "POST", headers }).catch(() => null);
      status.textContent = answer ? await answer.text() : "the run does not answer";
    });
    return button;
  });
  bar.append(status, ...buttons);
  document.querySelector("header").after(bar);

  /** Replaces a part of the page, and keeps its lists open that were. */
  function replace(element, html) {
    const open = [...element.querySelectorAll("details")].map((each) => each.open);
    element.innerHTML = html;
    element.querySelectorAll("details").forEach((each, i) => {
      if (i < open.length) each.open = open[i];
    });
  }

  let next = Number(document.getElementById("tables").dataset.steps);
  function listen() {
    const events = new EventSource(`events?from=${next}`);
    events.addEventListener("steps", ({ data }) => {
      const { columns, from, header, tables, state } = JSON.parse(data);
      // A connection that was cut begins anew, and may repeat points.
      if (from === next) {
        next = from + columns.step.length;
        dispatchEvent(new CustomEvent("run-data", { detail: columns }));
      }
      const box = document.createElement("div");
      box.innerHTML = header;
      document.querySelector("header").replaceChildren(...box.firstElementChild.childNodes);
      if (tables !== null) replace(document.getElementById("tables"), tables);
      status.textContent = state;
    });
    events.addEventListener("end", ({ data }) => {
      status.textContent = data;
      for (const button of buttons) button.disabled = true;
      events.close();
    });
    events.addEventListener("error", () => {
      events.close();
      status.textContent = "the run does not answer; trying again";
      setTimeout(listen, 2000);
    });
  }
  listen();
})();
