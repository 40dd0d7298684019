// The index: scans, what it holds, what could not be read.
import { bytes, clock, count, html, plural, useEffect, useState } from "./lib.js";
import { api } from "./api.js";
import { go } from "./route.js";

export function Library({ index, say, first }) {
  const scan = index.scan;
  const running = scan && (scan.state === "running" || scan.state === "stopping");
  const start = (request) => api.scan(request).then(() => go({ view: "" }), (error) => say(error.message, "error"));
  if (first)
    return html`<section class="welcome"><h1>Find moments in your videos</h1>
      <p>Choose a folder of videos (and pictures) on this computer. They are indexed here; nothing leaves the machine. You can search while the scan runs.</p>
      <${Folders} start=${start} pictures=${false} />
      ${index.samples ? html`<p>No videos at hand? <button onClick=${() => start({ samples: true })}>Try the sample clips</button></p>` : null}</section>`;
  return html`<div class="library">
    <h1>Index</h1>
    <section class="panel"><h2>Scan</h2>
      ${running ? html`<${Progress} scan=${scan} say=${say} />` : html`
        ${scan && scan.state !== "running" ? html`<p role="status">${summary(scan)}</p>` : null}
        <div class="actions"><button class="primary" onClick=${() => start({})}>Scan ${index.name ? `“${index.name}”` : "the folder"} again</button></div>
        <details><summary>Scan another folder</summary><${Folders} start=${start} pictures=${index.pictures} /></details>`}
    </section>
    <section class="panel"><h2>Contents</h2>
      <dl class="tiles">${[[index.pictures ? "Files" : "Videos", count(index.files)], ["Segments", count(index.segments)], index.hours < 1 ? ["Minutes", count(Math.round(60 * index.hours))] : ["Hours", index.hours.toFixed(1)], ["Index size", bytes(index.bytes)]].map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
      <ul class="statuses" aria-label="Files by status">${Object.entries(index.statuses || {}).sort((a, b) => b[1] - a[1]).map(([status, n]) => html`<li class=${status === "ok" ? "" : "bad"}>${count(n)} ${STATUS[status] || status.replaceAll("_", " ")}</li>`)}${index.updated ? html`<li class="plain">updated ${when(index.updated)}</li>` : null}</ul>
    </section>
    <section class="panel wide"><h2>Model</h2><p><strong>${index.model?.name || "none"}</strong>${index.model?.about ? `: ${index.model.about}` : ""}</p>
      <p>${index.model?.asks ? "It answers questions about a video." : index.model?.chooses ? "It chooses among possible answers that you give; it has none of its own." : "It cannot answer questions."}</p></section>
    <${Unreadable} say=${say} total=${Object.entries(index.statuses || {}).reduce((sum, [status, n]) => sum + (status === "ok" ? 0 : n), 0)} />
  </div>`;
}

const STATUS = { ok: "readable", partial: "readable in part", no_video: "without video", zero_frames: "without frames", not_a_file: "not a file" };
const when = (iso) => new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
const summary = (scan) => scan.state === "failed" ? `The last scan failed: ${scan.message}` : `The last scan ${scan.state === "stopped" ? "was stopped" : "is done"}: ${plural(scan.added, "file")} added, ${count(scan.changed)} changed, ${count(scan.removed)} removed, ${count(scan.unreadable)} unreadable.`;

function Progress({ scan, say }) {
  const left = scan.seconds_left === null || scan.seconds_left === undefined ? "" : `, about ${clock(scan.seconds_left)} left`;
  return html`<div class="scan" role="status"><progress max=${Math.max(1, scan.total)} value=${scan.done}></progress>
    <p>${count(scan.done)} of ${plural(scan.total, "file")}${scan.rate ? `, ${scan.rate.toFixed(1)} a second` : ""}${left}. ${scan.unreadable ? `${count(scan.unreadable)} unreadable.` : ""}</p>
    <div class="actions"><button disabled=${scan.state === "stopping"} onClick=${() => api.stopScan().catch((error) => say(error.message, "error"))}>${scan.state === "stopping" ? "Stopping…" : "Stop"}</button><button class="quiet" onClick=${() => go({ view: "" })}>Search meanwhile</button></div></div>`;
}

function Folders({ start, pictures }) {
  const [also, setAlso] = useState(pictures);
  const [trail, setTrail] = useState([]);
  const [list, setList] = useState(null);
  const [failure, setFailure] = useState("");
  const here = trail.at(-1);
  useEffect(() => {
    setList(null);
    api.folders(here?.folder).then((answer) => setList(answer.folders), (error) => setFailure(error.message));
  }, [here?.folder]);
  return html`<div class="folders">
    <nav aria-label="Folder" class="trail"><button class="quiet" onClick=${() => setTrail([])}>Computer</button>${trail.map((one, i) => html`<span>/</span><button class="quiet" onClick=${() => setTrail(trail.slice(0, i + 1))}>${one.name}</button>`)}</nav>
    ${failure ? html`<p role="alert">${failure}</p>` : null}
    <ul>${(list || []).map((one) => html`<li><button class="folder" onClick=${() => setTrail([...trail, one])}><span aria-hidden="true">▸</span> ${one.name}</button></li>`)}${list && !list.length ? html`<li class="none">No folders inside.</li>` : null}</ul>
    <label class="check"><input type="checkbox" checked=${also} onChange=${(event) => setAlso(event.target.checked)} /> Index still pictures too</label>
    <div class="actions"><button class="primary" disabled=${!here} onClick=${() => start({ folder: here.folder, pictures: also })}>${here ? `Index “${here.name}”` : "Choose a folder"}</button></div>
  </div>`;
}

function Unreadable({ total, say }) {
  const [files, setFiles] = useState([]);
  const [next, setNext] = useState(undefined);
  const load = (cursor) => api.unreadable(cursor).then((answer) => (setFiles((before) => (cursor ? [...before, ...answer.files] : answer.files)), setNext(answer.next)), (error) => say(error.message, "error"));
  useEffect(() => void load(), [total]);
  return html`<section class="panel wide"><h2>Unreadable files</h2>
    ${files.length ? html`<div class="table" tabindex="0" role="region" aria-label="Unreadable files"><table><thead><tr><th>File</th><th>Status</th><th>Reason</th></tr></thead><tbody>${files.map((file) => html`<tr><td title=${file.folder}>${[file.folder, file.name].filter(Boolean).join("/")}</td><td>${file.status.replaceAll("_", " ")}</td><td>${file.reason}</td></tr>`)}</tbody></table></div>` : html`<p>Every file could be read.</p>`}
    ${next ? html`<div class="actions"><button onClick=${() => load(next)}>Show more</button></div>` : null}</section>`;
}
