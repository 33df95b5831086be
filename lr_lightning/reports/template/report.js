"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const state = { axis: "step", hidden: new Set(), logLr: false, logLoss: true };
  const narrow = window.matchMedia("(max-width: 600px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // Plotly reads a little HTML in names, and a name may be anything.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const faded = (hex, alpha) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},${alpha})`;
  const decode = (text) => {
    if (text === null) return undefined;
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return Array.from(new Float32Array(bytes.buffer), (v) => (Number.isNaN(v) ? null : v));
  };
  for (const plot of data.plots)
    for (const trace of plot.traces) {
      let before = {};
      for (const series of Object.values(trace.by_axis)) {
        // What an axis does not have, it shares with the axis before it.
        for (const key of ["x", "y", "low", "high"]) series[key] = key in series ? decode(series[key]) : before[key];
        before = series;
      }
    }

  function drawn(trace, series, errorBars, many, log) {
    const axis = { xaxis: "x", yaxis: trace.panel ? `y${trace.panel + 1}` : "y" };
    const common = { ...axis, x: series.x, y: series.y, name: plain(trace.name), meta: plain(trace.name), type: "scatter",
      showlegend: false, hovertemplate: "%{meta}<br>x %{x:.5~g}<br>y %{y:.5~g}<extra></extra>" };
    const line = { color: trace.colour, dash: trace.dash, width: 2 };
    const single = series.x.length === 1;
    if (trace.kind === "points")
      return [{ ...common, mode: "markers", marker: { color: trace.colour, symbol: trace.symbol, size: 6, opacity: 0.5 } }];
    if (trace.kind === "range")
      return [{ ...common, mode: "lines", opacity: 0.45, line: { color: trace.colour, width: 8 } }];
    if (trace.kind === "front") return [{ ...common, mode: "lines", line: { ...line, width: 1.5 } }];
    if (trace.kind === "curve") {
      const mode = series.x.length < 2 ? "markers" : "lines";
      return [{ ...common, mode, opacity: many ? 0.35 : 0.75, line: { ...line, width: many ? 1 : 1.5 },
        marker: { color: trace.colour, symbol: trace.symbol, size: 5 } }];
    }
    const few = series.x.length <= 60;
    const mean = { ...common, mode: single ? "markers" : few ? "lines+markers" : "lines", line,
      marker: { color: trace.colour, symbol: trace.symbol, size: single ? 12 : 6 } };
    if (!series.low || series.low.every((v) => v === null)) return [mean];
    if (single || errorBars) {
      const up = series.high.map((v, i) => (v === null ? 0 : v - series.y[i]));
      return [{ ...mean, error_y: { type: "data", array: up, color: trace.colour, thickness: 1.5, width: 4 } }];
    }
    // On a logarithmic axis a band that reaches below 0 ends at a tenth of its mean.
    const low = log ? series.low.map((v, i) => (v === null ? v : Math.max(v, series.y[i] / 10))) : series.low;
    const edge = { ...axis, type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
    return [{ ...edge, x: series.x, y: low },
      { ...edge, x: series.x, y: series.high, fill: "tonexty", fillcolor: faded(trace.colour, 0.16) }, mean];
  }

  function layout(plot) {
    const grid = { gridcolor: variable("--line"), zerolinecolor: variable("--line"), linecolor: variable("--soft"),
      automargin: true };
    const n = plot.panels.length;
    const made = { showlegend: false, hovermode: "closest", paper_bgcolor: "rgba(0,0,0,0)", uirevision: state.axis,
      plot_bgcolor: "rgba(0,0,0,0)", font: { color: variable("--fg"), size: narrow.matches ? 11 : 13 },
      // The buttons have a strip above the data; Plotly would make them black, since the page's colour is transparent.
      margin: { l: 50, r: 12, t: narrow.matches ? 8 : 32, b: 40 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "#999999", activecolor: variable("--link") }, dragmode: narrow.matches ? false : "zoom",
      xaxis: { ...grid, anchor: n > 1 ? `y${n}` : "y", type: plot.log_x ? "log" : "linear", exponentformat: "e",
        title: { text: plain(plot.x_title || data.axes[plot.is_cost && state.axis === "fraction" ? "seconds" : state.axis]) } } };
    if (plot.is_cost) made.xaxis.rangemode = "tozero";
    plot.panels.forEach((title, i) => {
      const log = i === plot.lr_panel ? state.logLr : plot.log_panels.includes(i) && state.logLoss;
      const gap = 0.04;
      made[i ? `yaxis${i + 1}` : "yaxis"] = { ...grid, title: { text: plain(title) }, type: log ? "log" : "linear",
        domain: [Math.max(0, 1 - (i + 1) / n + (i < n - 1 ? gap : 0)), 1 - i / n], exponentformat: "e" };
    });
    return made;
  }

  // Powers of ten alone, where two are in view; Plotly's single digits between them are hard to read and overlap. In a
  // shorter range ticks are at 1, 2 and 5 or closer, and written in full. What is in view is known only when it is drawn,
  // and changes with a zoom.
  function ticks(graph) {
    const change = {};
    for (const name of Object.keys(graph.layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      const axis = graph.layout[name];
      if (axis.type !== "log" || !axis.range) continue;
      const [low, high] = [...axis.range].sort((a, b) => a - b);
      const powers = Math.floor(high) - Math.ceil(low) + 1;
      const dtick = powers >= 2 ? Math.ceil(powers / 8) : high - low > 0.5 ? "D2" : null;
      const wanted = { dtick, tickmode: dtick ? "linear" : "auto", tickformat: powers >= 2 ? "" : ".3~g" };
      for (const [key, value] of Object.entries(wanted))
        if ((axis[key] ?? null) !== value) change[`${name}.${key}`] = value;
    }
    return Object.keys(change).length ? Plotly.relayout(graph, change) : graph;
  }

  function draw(plot) {
    const traces = [];
    let missing = 0;
    const runs = plot.traces.filter((t) => t.kind === "curve").length;
    for (const trace of plot.traces) {
      if (state.hidden.has(trace.group)) continue;
      const series = trace.by_axis[""] || trace.by_axis[plot.is_cost && state.axis === "fraction" ? "seconds" : state.axis];
      if (series) traces.push(...drawn(trace, series, plot.error_bars, runs > 30, state.logLoss && plot.log_panels.includes(trace.panel)));
      else missing += 1;
    }
    document.getElementById(`missing-${plot.id}`).textContent =
      missing ? `${missing} of ${plot.traces.length} curves are missing on this axis: their runs did not record what it takes.` : "";
    const first = !document.querySelector(`#figure-${plot.id}.js-plotly-plot`);
    return Plotly.react(`figure-${plot.id}`, traces, layout(plot), { responsive: true, displaylogo: false,
      displayModeBar: narrow.matches ? false : "hover" }).then((graph) => {
      if (first) graph.on("plotly_relayout", () => ticks(graph));
      return ticks(graph);
    });
  }

  // Plotly is the most of this page; packed, it is a third as large. The page's policy admits it by its hash.
  async function unpack() {
    const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }
  const ready = unpack();
  ready.catch(() => {
    for (const plot of data.plots)
      document.getElementById(`figure-${plot.id}`).textContent =
        "This browser cannot unpack the figures. It needs Chrome 80, Firefox 113, Safari 16.4, or a newer one.";
  });
  const drawAll = () => ready.then(() => Promise.all(data.plots.map(draw)))
    .then(() => { document.body.dataset.drawn = state.axis; });
  for (const input of document.querySelectorAll("input[name=axis]"))
    input.addEventListener("change", () => { state.axis = input.value; drawAll(); });
  for (const input of document.querySelectorAll("input[data-group]"))
    input.addEventListener("change", () => {
      state.hidden[input.checked ? "delete" : "add"](Number(input.dataset.group)); drawAll(); });
  document.getElementById("log-lr").addEventListener("change", (e) => { state.logLr = e.target.checked; drawAll(); });
  document.getElementById("log-loss").addEventListener("change", (e) => { state.logLoss = e.target.checked; drawAll(); });
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  drawAll();
})();
