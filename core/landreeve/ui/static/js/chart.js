// Lines over time: <div class="chart" data-keep data-chart='{"t":[…],"lines":[[…],…]}'>. The legend is our own HTML:
// uPlot's is a table in English. Colours come from the tokens, so a chart is rebuilt when the theme changes.
(() => {
  const charts = new Map();
  const locale = document.documentElement.lang + "-u-nu-latn";
  const clock = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  const exact = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  const colour = (name) => getComputedStyle(probe(name)).color;
  const probe = (name) => {
    let node = document.getElementById("probe-" + name);
    if (!node) {
      node = document.createElement("i");
      node.id = "probe-" + name;
      node.hidden = true;
      document.body.append(node);
      node.style.color = `var(--${name})`;
    }
    return node;
  };
  const date = new Intl.DateTimeFormat(locale, { day: "numeric", month: "short", timeZone: "UTC" });
  const plain = (value) => (value == null ? "–" : String(+value.toPrecision(4)));
  const ms = (value) => (value == null ? "–" : (value < 1 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0)) + "\u00a0ms");
  const options = (element) => {
    const days = "day" in element.dataset;
    const time = days ? date : clock;
    const unit = (value) => ("unit" in element.dataset ? plain(value) : `${+value.toPrecision(3)} ms`);
    const font = "12px " + getComputedStyle(document.body).fontFamily;
    const axis = { stroke: colour("muted"), font, ticks: { show: false }, grid: { stroke: colour("grid"), width: 1 } };
    const styles = [{ stroke: colour("series-1"), width: 2 }, { stroke: colour("series-2"), width: 2, dash: [5, 4] }];
    return {
      width: element.clientWidth,
      height: element.clientHeight,
      legend: { show: false },
      padding: [8, 20, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: { y: { range: (_, low, high) => (days ? [low * 0.96, high * 1.04] : [0, Math.max(high || 1, 0.01) * 1.12]) } },
      axes: [
        { ...axis, size: 30, space: element.clientWidth < 420 ? 52 : 74, values: (_, ticks) => ticks.map((t, i) => (i && time.format(t * 1000) === time.format(ticks[i - 1] * 1000) ? "" : time.format(t * 1000))) },
        { ...axis, size: 58, space: 38, values: (_, ticks) => ticks.map(unit) },
      ],
      series: [{}, ...styles.map((style) => ({ ...style, points: { show: false }, spanGaps: false }))],
      hooks: { setCursor: [(plot) => legend(element, plot)] },
    };
  };

  const legend = (element, plot) => {
    const box = document.getElementById(element.dataset.legend);
    if (!box) return;
    const at = plot.cursor.idx ?? Math.max(0, plot.data[1].findLastIndex((value) => value != null));
    box.querySelectorAll("[data-line]").forEach((cell) => { cell.textContent = ("unit" in element.dataset ? plain : ms)(plot.data[+cell.dataset.line]?.[at]); });
    const when = box.querySelector("[data-when]");
    if (when) when.textContent = plot.cursor.idx == null || at < 0 ? "" : ("day" in element.dataset ? date : exact).format(plot.data[0][at] * 1000);
  };

  const draw = (element) => {
    const { t, lines } = JSON.parse(element.dataset.chart);
    const data = [t, ...lines];
    const known = charts.get(element);
    if (known) {
      known.setData(data);
      legend(element, known);
      return;
    }
    const plot = new uPlot(options(element), data, element);
    charts.set(element, plot);
    legend(element, plot);
  };

  const all = () => {
    for (const [element, plot] of charts) if (!element.isConnected) { plot.destroy(); charts.delete(element); }
    document.querySelectorAll("[data-chart]").forEach(draw);
  };
  const rebuild = () => {
    for (const plot of charts.values()) plot.destroy();
    charts.clear();
    all();
  };

  landreeve.charts = all;
  document.addEventListener("landreeve:patched", all);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
  new ResizeObserver(() => {
    for (const [element, plot] of charts) plot.setSize({ width: element.clientWidth, height: element.clientHeight });
  }).observe(document.documentElement);
})();
