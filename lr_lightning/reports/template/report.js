"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const state = { axis: "step", hidden: new Set(), logRate: false, logLoss: true };
  const narrow = window.matchMedia("(max-width: 600px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // Plotly reads a little HTML in names; here a name is a name.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const faded = (hex, alpha) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},${alpha})`;
  const decode = (text) => {
    if (text === undefined) return undefined;
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return Array.from(new Float32Array(bytes.buffer), (v) => (Number.isNaN(v) ? null : v));
  };
  for (const figure of data.figures)
    for (const trace of figure.traces)
      for (const place of Object.values(trace.places))
        for (const key of ["x", "y", "low", "high"]) place[key] = decode(place[key]);

  function drawn(trace, place, many, log) {
    const axis = { xaxis: "x", yaxis: trace.panel ? `y${trace.panel + 1}` : "y" };
    const common = { ...axis, x: place.x, y: place.y, name: plain(trace.name), meta: plain(trace.name), type: "scatter",
      showlegend: false, hovertemplate: "%{meta}<br>x %{x:.5~g}<br>y %{y:.5~g}<extra></extra>" };
    const line = { color: trace.colour, dash: trace.dash, width: 2 };
    const single = place.x.length === 1;
    if (trace.kind === "points")
      return [{ ...common, mode: "markers", marker: { color: trace.colour, symbol: trace.symbol, size: 6, opacity: 0.5 } }];
    if (trace.kind === "range")
      return [{ ...common, mode: "lines", opacity: 0.45, line: { color: trace.colour, width: 8 } }];
    if (trace.kind === "front") return [{ ...common, mode: "lines", line: { ...line, width: 1.5 } }];
    if (trace.kind === "curve") {
      const mode = place.x.length < 2 ? "markers" : "lines";
      return [{ ...common, mode, opacity: many ? 0.35 : 0.75, line: { ...line, width: many ? 1 : 1.5 },
        marker: { color: trace.colour, symbol: trace.symbol, size: 5 } }];
    }
    const few = place.x.length <= 60;
    const mean = { ...common, mode: single ? "markers" : few ? "lines+markers" : "lines", line,
      marker: { color: trace.colour, symbol: trace.symbol, size: single ? 12 : 6 } };
    if (!place.low || place.low.every((v) => v === null)) return [mean];
    if (single || trace.bars) {
      const up = place.high.map((v, i) => (v === null ? 0 : v - place.y[i]));
      return [{ ...mean, error_y: { type: "data", array: up, color: trace.colour, thickness: 1.5, width: 4 } }];
    }
    // On a logarithmic axis a band that reaches below 0 ends at a tenth of its mean.
    const low = log ? place.low.map((v, i) => (v === null ? v : Math.max(v, place.y[i] / 10))) : place.low;
    const edge = { ...axis, type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
    return [{ ...edge, x: place.x, y: low },
      { ...edge, x: place.x, y: place.high, fill: "tonexty", fillcolor: faded(trace.colour, 0.16) }, mean];
  }

  function layout(figure) {
    const grid = { gridcolor: variable("--line"), zerolinecolor: variable("--line"), linecolor: variable("--soft"),
      automargin: true };
    const n = figure.panels.length;
    const made = { showlegend: false, hovermode: "closest", paper_bgcolor: "rgba(0,0,0,0)", uirevision: state.axis,
      plot_bgcolor: "rgba(0,0,0,0)", font: { color: variable("--fg"), size: narrow.matches ? 11 : 13 },
      // The buttons have a strip above the data; Plotly would make them a colour of the page's, which is none: black.
      margin: { l: 50, r: 12, t: narrow.matches ? 8 : 32, b: 40 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "#999999", activecolor: variable("--link") }, dragmode: narrow.matches ? false : "zoom",
      xaxis: { ...grid, anchor: n > 1 ? `y${n}` : "y", type: figure.log_x ? "log" : "linear", exponentformat: "e",
        title: { text: plain(figure.x_title || data.axes[figure.id === "cost" && state.axis === "fraction" ? "seconds" : state.axis]) } } };
    if (figure.id === "cost") made.xaxis.rangemode = "tozero";
    figure.panels.forEach((title, i) => {
      const rate = title === "learning rate";
      const log = rate ? state.logRate : figure.log_panels.includes(i) && state.logLoss;
      const gap = 0.04;
      made[i ? `yaxis${i + 1}` : "yaxis"] = { ...grid, title: { text: plain(title) }, type: log ? "log" : "linear",
        domain: [Math.max(0, 1 - (i + 1) / n + (i < n - 1 ? gap : 0)), 1 - i / n], exponentformat: "e" };
    });
    return made;
  }

  // Powers of ten alone, where two are in view; Plotly's single digits between them are hard to read and overlap. In a
  // shorter range ticks are at 1, 2 and 5 or closer, and written in full. What is in view is known only when it is drawn,
  // and changes with a zoom.
  function ticks(plot) {
    const change = {};
    for (const name of Object.keys(plot.layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      const axis = plot.layout[name];
      if (axis.type !== "log" || !axis.range) continue;
      const [low, high] = [...axis.range].sort((a, b) => a - b);
      const powers = Math.floor(high) - Math.ceil(low) + 1;
      const dtick = powers >= 2 ? Math.ceil(powers / 8) : high - low > 0.5 ? "D2" : null;
      const wanted = { dtick, tickmode: dtick ? "linear" : "auto", tickformat: powers >= 2 ? "" : ".3~g" };
      for (const [key, value] of Object.entries(wanted))
        if ((axis[key] ?? null) !== value) change[`${name}.${key}`] = value;
    }
    return Object.keys(change).length ? Plotly.relayout(plot, change) : plot;
  }

  function draw(figure) {
    const traces = [];
    let missing = 0;
    const runs = figure.traces.filter((t) => t.kind === "curve").length;
    for (const trace of figure.traces) {
      if (state.hidden.has(trace.group)) continue;
      const place = trace.places[""] || trace.places[figure.id === "cost" && state.axis === "fraction" ? "seconds" : state.axis];
      if (place) traces.push(...drawn(trace, place, runs > 30, state.logLoss && figure.log_panels.includes(trace.panel)));
      else missing += 1;
    }
    document.getElementById(`missing-${figure.id}`).textContent =
      missing ? `${missing} of ${figure.traces.length} curves have no place on this axis: what it needs was not recorded.` : "";
    const first = !document.querySelector(`#figure-${figure.id}.js-plotly-plot`);
    return Plotly.react(`figure-${figure.id}`, traces, layout(figure), { responsive: true, displaylogo: false,
      displayModeBar: narrow.matches ? false : "hover" }).then((plot) => {
      if (first) plot.on("plotly_relayout", () => ticks(plot));
      return ticks(plot);
    });
  }

  const drawAll = () => Promise.all(data.figures.map(draw)).then(() => { document.body.dataset.drawn = state.axis; });
  for (const input of document.querySelectorAll("input[name=axis]"))
    input.addEventListener("change", () => { state.axis = input.value; drawAll(); });
  for (const input of document.querySelectorAll("input[data-group]"))
    input.addEventListener("change", () => {
      state.hidden[input.checked ? "delete" : "add"](Number(input.dataset.group)); drawAll(); });
  document.getElementById("log-rate").addEventListener("change", (e) => { state.logRate = e.target.checked; drawAll(); });
  document.getElementById("log-loss").addEventListener("change", (e) => { state.logLoss = e.target.checked; drawAll(); });
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  drawAll();
})();
