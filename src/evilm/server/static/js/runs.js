// Training runs: loss curves that follow the training, metrics, what was predicted.
import { html, useEffect, useRef, useState } from "./lib.js";
import { api } from "./api.js";
import { go } from "./route.js";

const when = (iso) => new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

let plotter = null;
function uplot() {
  plotter ??= new Promise((resolve, reject) => {
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: "vendor/uplot.css" }));
    const script = Object.assign(document.createElement("script"), { src: "vendor/uplot.js", onload: () => resolve(window.uPlot), onerror: reject });
    document.head.append(script);
  });
  return plotter;
}

export function Runs({ route, changed, say }) {
  const [runs, setRuns] = useState(null);
  const updates = Object.values(changed).reduce((a, b) => a + b, 0);
  useEffect(() => void api.runs().then((answer) => setRuns(answer.runs), (error) => (say(error.message, "error"), setRuns([]))), [updates]);
  if (!runs) return html`<section class="state" aria-busy="true"><p>Loading the runs…</p></section>`;
  if (!runs.length) return html`<section class="state"><h1>No runs</h1><p>Start the server with <code>--runs FOLDER</code> to watch training runs here, or train one: <code>evilm demo</code>.</p></section>`;
  const open = [route.run, route.compare].filter(Boolean);
  return html`<div class="runs"><h1>Runs</h1>
    <div class="table short" tabindex="0" role="region" aria-label="List of runs"><table><thead><tr><th>Run</th><th>Task</th><th>Steps</th><th>Result</th><th>Updated</th><th><span class="hidden">Compare</span></th></tr></thead>
      <tbody>${runs.map((run) => html`<tr class=${open.includes(run.run) ? "current" : ""}>
        <td><a href=${`?view=runs&run=${run.run}`} onClick=${(event) => (event.preventDefault(), go({ run: run.run, compare: "" }))}>${run.name}</a>${run.running ? html`<span class="pulse" title="Training"></span>` : null}</td>
        <td>${run.task.replaceAll("_", " ")}</td><td>${run.step}${run.total ? ` / ${run.total}` : ""}</td>
        <td>${run.metric ? html`${run.metric.name} <strong>${run.metric.value.toFixed(1)}</strong>${run.metric.interval ? html` <small>(${run.metric.interval.map((x) => x.toFixed(1)).join(" to ")})</small>` : null}` : "–"}</td>
        <td>${when(run.updated)}</td>
        <td>${route.run && route.run !== run.run ? html`<button class="quiet" onClick=${() => go({ compare: route.compare === run.run ? "" : run.run })}>${route.compare === run.run ? "Close" : "Compare"}</button>` : null}</td></tr>`)}</tbody></table></div>
    <div class=${open.length > 1 ? "two" : ""}>${open.map((id) => html`<${Run} key=${id} id=${id} version=${changed[id] || 0} say=${say} />`)}</div></div>`;
}

function Run({ id, version, say }) {
  const [run, setRun] = useState(null);
  useEffect(() => void api.run(id).then(setRun, (error) => say(error.message, "error")), [id, version]);
  if (!run) return html`<section class="panel" aria-busy="true"><p>Loading…</p></section>`;
  const skip = new Set(["step", "epoch", "seconds", "lr", "gradient", "skipped", "codes_in_batch", "rate"]);
  const parts = [...new Set(run.metrics.flatMap((row) => Object.keys(row)))].filter((name) => !skip.has(name));
  const names = parts.filter((name) => name === "loss" || run.metrics.some((row) => row[name] !== row.loss)); // a loss of one part is drawn once
  const checks = [...new Set(run.validation.flatMap((row) => Object.keys(row)))].filter((name) => name !== "step" && !name.includes("["));
  const evaluation = run.evaluation?.metrics;
  return html`<section class="panel run"><h2>${run.name}</h2>
    ${evaluation ? html`<dl class="tiles">${Object.entries(evaluation).filter(([name]) => !name.includes("[")).slice(0, 8).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value.toFixed(1)}</dd>${run.evaluation.chance?.[name] !== undefined ? html`<small>chance ${run.evaluation.chance[name].toFixed(1)}</small>` : null}</div>`)}</dl>` : null}
    ${run.metrics.length ? html`<h3>Training loss</h3><${Curve} rows=${run.metrics} names=${names} />` : html`<p>No steps yet.</p>`}
    ${run.validation.length > 1 ? html`<h3>Validation</h3><${Curve} rows=${run.validation} names=${checks} />` : null}
    ${run.masked?.length ? html`<h3>Hidden patches and what was predicted</h3><p class="legend"><span class="cell-right"></span> right <span class="cell-wrong"></span> wrong <span class="cell-seen"></span> not hidden; one grid a frame</p><div class="samples">${run.masked.map((one) => html`<${Masked} clip=${one} />`)}</div>` : null}
    ${run.retrieved?.length ? html`<h3>Retrieved videos</h3><div class="table short" tabindex="0" role="region" aria-label="Retrieved videos"><table><thead><tr><th>Text</th><th>Rank of the right one</th><th>First videos</th></tr></thead><tbody>${run.retrieved.map((one) => html`<tr><td>${one.text}</td><td>${one.rank}</td><td>${one.first.map((name) => html`<span class=${name === one.video ? "right" : "other"}>${name}</span> `)}</td></tr>`)}</tbody></table></div>` : null}
    ${run.codes?.length ? html`<h3>Use of codes</h3><${Bars} values=${run.codes} />` : null}
    <details><summary>Recipe</summary><pre>${run.recipe}</pre></details>
  </section>`;
}

function Masked({ clip }) {
  const [frames, height, width] = clip.grid;
  const hidden = clip.hidden.filter(Boolean).length;
  const right = clip.hidden.filter((one, i) => one && clip.right[i]).length;
  return html`<figure><svg viewBox=${`0 0 ${frames * (width + 0.6) - 0.6} ${height}`} role="img" aria-label=${`${right} of ${hidden} hidden patches predicted right`}>
    ${clip.hidden.map((one, i) => {
      const [frame, place] = [Math.floor(i / (height * width)), i % (height * width)];
      return html`<rect x=${frame * (width + 0.6) + (place % width) + 0.05} y=${Math.floor(place / width) + 0.05} width="0.9" height="0.9" class=${one ? (clip.right[i] ? "cell-right" : "cell-wrong") : "cell-seen"} />`;
    })}</svg>
    <figcaption><strong>${clip.text}</strong><br />${right} of ${hidden} right${clip.guessed.length ? html`; predicted: ${clip.guessed.join(", ")}` : null}${clip.wanted.length ? html`; true: ${clip.wanted.join(", ")}` : null}</figcaption></figure>`;
}

const COLOURS = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6"];

function Curve({ rows, names }) {
  const holder = useRef(null);
  const chart = useRef(null);
  const data = [rows.map((row) => row.step), ...names.map((name) => rows.map((row) => row[name] ?? null))];
  useEffect(() => {
    let gone = false;
    uplot().then((Plot) => {
      if (gone || !holder.current) return;
      const style = getComputedStyle(document.documentElement);
      const ink = style.getPropertyValue("--quiet").trim();
      const grid = { stroke: style.getPropertyValue("--edge").trim(), width: 1 };
      const size = () => ({ width: holder.current.clientWidth, height: 260 });
      chart.current = new Plot({ ...size(), scales: { x: { time: false } }, cursor: { y: false }, axes: [{ stroke: ink, grid, ticks: grid }, { stroke: ink, grid, ticks: grid, size: 56 }],
        series: [{ label: "step" }, ...names.map((name, i) => ({ label: name, width: 1.5, stroke: style.getPropertyValue(COLOURS[i % COLOURS.length]).trim(), spanGaps: true, points: { show: rows.length < 40 } }))] }, data, holder.current);
      const watch = new ResizeObserver(() => chart.current?.setSize(size()));
      watch.observe(holder.current);
      chart.current.stop = () => watch.disconnect();
    });
    return () => ((gone = true), chart.current?.stop?.(), chart.current?.destroy(), (chart.current = null));
  }, [names.join()]);
  useEffect(() => chart.current?.setData(data), [rows]);
  return html`<div class="curve" ref=${holder} role="img" aria-label=${`Curves of ${names.join(", ")} over ${rows.length} points; last: ${names.map((name) => `${name} ${(rows.findLast((row) => row[name] !== undefined)?.[name] ?? 0).toFixed?.(3)}`).join(", ")}`}></div>`;
}

function Bars({ values }) {
  const most = Math.max(...values, 1);
  return html`<svg class="bars" viewBox=${`0 0 ${values.length} 100`} preserveAspectRatio="none" role="img" aria-label=${`${values.filter((n) => n > 0).length} of ${values.length} codes are used`}>${values.map((n, i) => html`<rect x=${i} width="0.9" y=${100 - (100 * n) / most} height=${(100 * n) / most} />`)}</svg>`;
}
