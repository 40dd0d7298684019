// Search: the box, filters, results as segments, selection and export.
import { bytes, classes, clock, count, day, html, plural, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./lib.js";
import { api, download, still } from "./api.js";
import { go } from "./route.js";
import { Dialog, Score, Words } from "./parts.js";
import { Viewer } from "./viewer.js";

const PAGE = 48;
const KEYS = ["folder", "after", "until", "min", "max", "name"]; // of filters
const NONE = Object.fromEntries(KEYS.map((key) => [key, ""]));
const number = (text) => (text === undefined || text === "" || Number.isNaN(Number(text)) ? undefined : Number(text));

// The interface leaves out the day of ``before``; people who enter a last day expect it to be included.
const dayAfter = (iso) => new Date(Date.parse(`${iso}T00:00:00Z`) + 86400000).toISOString().slice(0, 10);

export function requestOf(route) {
  const filters = {
    folder: route.folder, after: route.after, before: route.until && dayAfter(route.until), name: route.name,
    min_seconds: number(route.min), max_seconds: number(route.max),
  };
  const present = Object.fromEntries(Object.entries(filters).filter(([, value]) => value !== undefined && value !== ""));
  return { text: route.q, segment: route.like, upload: route.upload, filters: present, sort: route.sort || "score", limit: PAGE };
}

export function SearchView({ route, index, say }) {
  const request = useMemo(() => requestOf(route), [route.q, route.like, route.upload, route.folder, route.after, route.until, route.min, route.max, route.name, route.sort]);
  const asked = Boolean(request.text || request.segment || request.upload);
  const [found, setFound] = useState({ hits: [], next: null, state: "idle" });
  const [selected, setSelected] = useState(new Map());
  const [exporting, setExporting] = useState(false);
  const results = useRef(null);

  useEffect(() => {
    if (!asked && !index.ready) return undefined;
    const control = new AbortController();
    setFound((before) => ({ ...before, state: "loading" }));
    api.search(request, control.signal).then(
      (answer) => setFound({ ...answer, state: "done" }),
      (error) => error.name !== "AbortError" && setFound({ hits: [], next: null, state: "failed", error }),
    );
    return () => control.abort();
  }, [request, index.ready, asked ? 0 : index.segments]);

  const more = useCallback(() => {
    setFound((before) => {
      if (before.state !== "done" || !before.next) return before;
      api.search({ ...request, cursor: before.next }).then(
        (answer) => setFound((now) => (now.hits === before.hits && now.state === "more" ? { ...now, hits: [...now.hits, ...answer.hits], next: answer.next, state: "done" } : now)), // not below another search
        (error) => (say(error.message, "error"), setFound((now) => (now.state === "more" ? { ...now, state: "done" } : now))),
      );
      return { ...before, state: "more" };
    });
  }, [request]);

  const open = (hit) => go({ segment: hit?.segment || "" });
  const place = found.hits.findIndex((hit) => hit.segment === route.segment);
  const step = (by) => {
    const next = found.hits[place + by];
    if (next) go({ segment: next.segment }, { replace: true });
    else if (by > 0 && found.next) more();
  };
  const toggle = (hit) => setSelected((before) => {
    const after = new Map(before);
    if (!after.delete(hit.segment)) after.set(hit.segment, hit);
    return after;
  });

  const keys = (event) => {
    const cards = [...results.current.querySelectorAll(".card-open")];
    const here = cards.indexOf(document.activeElement);
    if (here < 0) return;
    const columns = getComputedStyle(results.current).gridTemplateColumns.split(" ").length;
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (by) {
      event.preventDefault();
      cards[Math.min(cards.length - 1, Math.max(0, here + by))].focus();
    } else if (event.key === "x") toggle(found.hits[here]);
    else if (event.key === "m") go({ like: found.hits[here].segment, q: "", upload: "", segment: "" });
  };

  return html`<div class=${classes("search", route.segment && "has-viewer")}>
    <div class="column">
      <${Box} route=${route} index=${index} say=${say} />
      ${index.scan?.state === "running" ? html`<p class="notice" role="status">A scan is running: ${plural(index.scan.done, "file")} of ${count(index.scan.total)}. New results appear as it goes on.</p>` : null}
      <${Heading} found=${found} asked=${asked} route=${route} index=${index} />
      <div class="grid" ref=${results} onKeyDown=${keys} aria-busy=${found.state === "loading"}>
        ${found.state === "loading" && !found.hits.length ? Array.from({ length: 12 }, () => html`<div class="card ghost" aria-hidden="true"><div class="still"></div></div>`) : null}
        ${found.hits.map((hit) => html`<${Card} key=${hit.segment} hit=${hit} asked=${asked} current=${hit.segment === route.segment} selected=${selected.has(hit.segment)} open=${open} toggle=${toggle} />`)}
      </div>
      ${found.next ? html`<${Sentinel} busy=${found.state === "more"} more=${more} />` : null}
    </div>
    ${route.segment ? html`<${Viewer} key=${route.segment} segment=${route.segment} hit=${found.hits[place]} request=${request} asked=${asked} step=${step} say=${say} index=${index} />` : null}
    ${selected.size ? html`<div class="selection" role="region" aria-label="Selected results">
      <strong>${plural(selected.size, "segment")}</strong>
      <button class="primary" onClick=${() => setExporting(true)}>Export…</button>
      <button class="quiet" onClick=${() => setSelected(new Map())}>Clear</button></div>` : null}
    ${exporting ? html`<${Export} hits=${[...selected.values()]} close=${() => setExporting(false)} say=${say} />` : null}
  </div>`;
}

function Box({ route, index, say }) {
  const [text, setText] = useState(route.q || "");
  const [filters, setFilters] = useState(KEYS.some((key) => route[key]));
  const [over, setOver] = useState(false);
  const [saved, setSaved] = useState([]);
  const [uploaded, setUploaded] = useState("");
  const picker = useRef(null);
  useLayoutEffect(() => setText(route.q || ""), [route.q]); // an effect that runs after the paint would erase what is typed before it
  useEffect(() => void api.saved().then((answer) => setSaved(answer.saved || []), () => {}), []);

  const take = (file) => {
    if (!file) return;
    say(`Reading ${file.name || "the picture"}…`);
    api.upload(file).then(
      (answer) => (setUploaded(answer.name), say(`Searching by ${answer.name}.`), go({ upload: answer.upload, like: "", segment: "" })),
      (error) => say(error.message, "error"),
    );
  };
  useEffect(() => {
    const paste = (event) => {
      const file = [...(event.clipboardData?.files || [])][0];
      if (file) (event.preventDefault(), take(file));
    };
    window.addEventListener("paste", paste);
    return () => window.removeEventListener("paste", paste);
  }, []);
  const keep = (list) => (setSaved(list), api.save({ saved: list }).catch((error) => say(error.message, "error")));
  const here = window.location.search;
  const isSaved = saved.some((one) => one.query === here);
  const submit = (event) => {
    event.preventDefault();
    go({ q: event.currentTarget.elements.query.value.trim(), segment: "", view: "" });
  };
  const active = KEYS.filter((key) => route[key]).length;
  const asked = Boolean(route.q || route.like || route.upload);
  return html`<form class=${classes("box", over && "over")} role="search" onSubmit=${submit}
      onDragOver=${(event) => (event.preventDefault(), setOver(true))} onDragLeave=${() => setOver(false)}
      onDrop=${(event) => (event.preventDefault(), setOver(false), take(event.dataTransfer.files[0]))}>
    <div class="box-line">
      <label class="hidden" for="query">Search for</label>
      <div class="field"><input id="query" type="search" autocomplete="off" spellcheck="true" value=${text} onInput=${(event) => setText(event.target.value)}
        placeholder=${index.model?.example ? `Describe a moment, e.g. “${index.model.example}”` : "Describe a moment"} />
      <input ref=${picker} class="hidden" type="file" accept="image/*,video/*" tabindex="-1" aria-label="Choose a picture or clip" onChange=${(event) => (take(event.target.files[0]), (event.target.value = ""))} />
      <button type="button" class="quiet" title="Search by a picture or clip (or drop or paste one)" aria-label="Search by a picture or clip" onClick=${() => picker.current.click()}>
        <svg viewBox="0 0 24 24" width="20" height="20" aria-hidden="true"><path d="M4 6h3l2-2h6l2 2h3v13H4z M12 9a4 4 0 1 0 0 8a4 4 0 0 0 0-8" /></svg></button></div>
      <button type="submit" class="primary"><svg viewBox="0 0 24 24" width="20" height="20" aria-hidden="true"><path d="M10.5 4a6.5 6.5 0 1 0 0 13a6.5 6.5 0 0 0 0-13 M15.5 15.5L20 20" /></svg><span>Search</span></button>
    </div>
    <div class="chips">
      <button type="button" class=${classes("chip", active && "on")} aria-expanded=${filters} aria-controls="filters" onClick=${() => setFilters(!filters)}>Filters${active ? ` (${active})` : ""}</button>
      <label class="chip">Sort <select value=${route.sort || (asked ? "score" : "date")} onChange=${(event) => go({ sort: event.target.value === "score" ? "" : event.target.value })}>
        ${asked ? html`<option value="score">by score</option>` : null}<option value="date">by date</option><option value="name">by name</option></select></label>
      ${route.like ? html`<button type="button" class="chip on" onClick=${() => go({ like: "" })}>Like a segment ✕</button>` : null}
      ${route.upload ? html`<button type="button" class="chip on" onClick=${() => go({ upload: "" })}>Like ${uploaded || "an upload"} ✕</button>` : null}
      ${here && (route.q || route.like) ? html`<button type="button" class="chip" aria-pressed=${isSaved} onClick=${() => keep(isSaved ? saved.filter((one) => one.query !== here) : [...saved, { name: route.q || "like a segment", query: here }])}>${isSaved ? "★ Saved" : "☆ Save"}</button>` : null}
      ${saved.filter((one) => one.query !== here).slice(-6).map((one) => html`<a class="chip" href=${one.query} onClick=${(event) => (event.preventDefault(), window.history.pushState(null, "", one.query), window.dispatchEvent(new PopStateEvent("popstate")))}>★ ${one.name}</a>`)}
      <span class="hint">Leave something out with a minus: <code>beach -people</code></span>
    </div>
    ${filters ? html`<${Filters} route=${route} index=${index} />` : null}
  </form>`;
}

function Filters({ route, index }) {
  const set = (key) => (event) => go({ [key]: event.target.value, segment: "" }, { replace: true });
  return html`<fieldset id="filters" class="filters"><legend class="hidden">Filters</legend>
    <label>Folder<select value=${route.folder || ""} onChange=${set("folder")}><option value="">all folders</option>${(index.folders || []).filter(Boolean).map((folder) => html`<option value=${folder}>${folder}</option>`)}</select></label>
    <label>From<input type="date" value=${route.after || ""} onChange=${set("after")} /></label>
    <label>Until<input type="date" value=${route.until || ""} onChange=${set("until")} /></label>
    <label>Shortest, s<input type="number" min="0" step="0.5" inputmode="decimal" value=${route.min || ""} onChange=${set("min")} /></label>
    <label>Longest, s<input type="number" min="0" step="0.5" inputmode="decimal" value=${route.max || ""} onChange=${set("max")} /></label>
    <label>File name contains<input type="text" value=${route.name || ""} onChange=${set("name")} /></label>
    ${KEYS.some((key) => route[key]) ? html`<button type="button" class="quiet" onClick=${() => go(NONE)}>Clear filters</button>` : null}
  </fieldset>`;
}

function Heading({ found, asked, route, index }) {
  if (found.state === "failed")
    return html`<section class="state" role="alert"><h1>This search did not work</h1><p>${found.error.message}</p><button onClick=${() => go({}, { replace: true })}>Try again</button></section>`;
  if (found.state === "idle" || found.state === "loading") return html`<h1 class="results-title">${asked ? "Searching…" : ""}</h1>`;
  if (!found.hits.length) {
    const filtered = KEYS.some((key) => route[key]);
    return html`<section class="state"><h1>${index.segments ? "Nothing fits these filters" : "The index is empty"}</h1>
      <p>${filtered ? "Clear a filter, or choose a wider range." : index.segments ? "Try other words." : "Add a folder in the Index view."}</p>
      ${filtered ? html`<button class="primary" onClick=${() => go(NONE)}>Clear filters</button>` : null}</section>`;
  }
  if (!asked) return html`<h1 class="results-title">All segments <small>${plural(found.total, "segment")} of ${plural(index.files, index.pictures ? "file" : "video")}, ${index.hours < 1 ? plural(Math.max(1, Math.round(index.hours * 60)), "minute") : `${index.hours.toFixed(1)} hours`}</small></h1>`;
  const took = found.seconds < 1 ? `${Math.round(1000 * found.seconds)} ms` : `${found.seconds.toFixed(1)} s`;
  if (found.no_good_match)
    return html`<section class="nomatch"><h1>No good match</h1><p>Nothing in the index seems to show this. The nearest segments are below; their scores are under 0.50.</p></section>`;
  return html`<h1 class="results-title">${plural(found.good, "good match", "good matches")} <small>${plural(found.total, "segment")} searched in ${took}</small></h1>`;
}

function Card({ hit, asked, current, selected, open, toggle }) {
  const [frame, setFrame] = useState(undefined);
  const [broken, setBroken] = useState(false);
  const timer = useRef(0);
  const loop = () => {
    if (hit.picture || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    let n = 0;
    clearInterval(timer.current);
    timer.current = setInterval(() => setFrame((n = (n + 1) % 8)), 350);
  };
  const rest = () => (clearInterval(timer.current), setFrame(undefined));
  useEffect(() => () => clearInterval(timer.current), []);
  const label = `${hit.name}, ${hit.picture ? "picture" : `${clock(hit.start)} to ${clock(hit.end)}`}${asked ? `, score ${hit.score.toFixed(2)}` : ""}`;
  return html`<article class=${classes("card", current && "current", selected && "selected", asked && !hit.good && "weak")}>
    <button class="card-open" onClick=${() => open(hit)} onMouseEnter=${loop} onMouseLeave=${rest} onFocus=${loop} onBlur=${rest} aria-label=${label}>
      <span class="still">${broken ? html`<span class="no-still">No still</span>` : html`<img src=${still(hit.segment, frame)} srcset=${`${still(hit.segment, frame)} 320w, ${still(hit.segment, frame, 360)} 640w`} sizes="(min-width: 1900px) 340px, (min-width: 620px) 240px, 48vw" alt="" loading="lazy" decoding="async" onError=${() => setBroken(true)} />`}
        <span class="times">${hit.picture ? "picture" : `${clock(hit.start)}–${clock(hit.end)}`}</span></span>
    </button>
    <label class="pick"><input type="checkbox" checked=${selected} onChange=${() => toggle(hit)} /><span class="hidden">Select ${label}</span></label>
    <div class="about">
      ${asked ? html`<${Score} value=${hit.score} good=${hit.good} />` : null}
      <span class="name" title=${hit.name}>${hit.name}</span>
      <span class="where">${[hit.folder, day(hit.date)].filter(Boolean).join(" · ")}</span>
      <${Words} hit=${hit} />
    </div>
  </article>`;
}

function Sentinel({ busy, more }) {
  const element = useRef(null);
  useEffect(() => {
    if (busy) return undefined;
    const watch = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && more(), { rootMargin: "800px" });
    watch.observe(element.current);
    return () => watch.disconnect();
  }, [more, busy]); // anew after each page: an observer is silent while the end stays in sight
  return html`<div class="more" ref=${element}><button onClick=${more} disabled=${busy}>${busy ? "Loading…" : "Show more"}</button></div>`;
}

const FORMATS = [
  ["clips", "Video clips (zip)", "cut at key frames without re-encoding where that is exact enough; pictures as they are"],
  ["csv", "CSV", "one row per segment"],
  ["json", "JSON", "all fields"],
  ["edl", "EDL (CMX 3600)", "for video editors"],
  ["fcpxml", "FCPXML", "for Final Cut Pro, Resolve, Premiere"],
];

export function Export({ hits, close, say }) {
  const [format, setFormat] = useState("clips");
  const [exact, setExact] = useState(false);
  const [job, setJob] = useState(null);
  const start = async () => {
    const segments = hits.map((hit) => ({ segment: hit.segment, start: hit.from ?? hit.start, end: hit.to ?? hit.end }));
    try {
      const answer = await api.exports({ segments, format, exact });
      if (format === "clips") setJob(answer);
      else {
        const file = answer instanceof Response ? answer : new Response(JSON.stringify(answer, null, 2));
        await download(file, `segments.${{ csv: "csv", json: "json", edl: "edl", fcpxml: "fcpxml" }[format]}`);
        close();
      }
    } catch (error) {
      say(error.message, "error");
    }
  };
  useEffect(() => {
    if (!job || job.state === "done" || job.state === "failed") return undefined;
    const timer = setTimeout(() => api.job(job.job).then(setJob, (error) => say(error.message, "error")), 400);
    return () => clearTimeout(timer);
  }, [job]);
  return html`<${Dialog} title=${`Export ${plural(hits.length, "segment")}`} close=${close}>
    <fieldset class="formats"><legend class="hidden">Format</legend>${FORMATS.map(([id, name, text]) => html`<label><input type="radio" name="format" value=${id} checked=${format === id} onChange=${() => setFormat(id)} /> <strong>${name}</strong> <small>${text}</small></label>`)}</fieldset>
    ${format === "clips" ? html`<label class="check"><input type="checkbox" checked=${exact} onChange=${(event) => setExact(event.target.checked)} /> Cut exactly (re-encode)</label>` : null}
    ${job ? html`<p role="status">${job.state === "failed" ? job.message : job.state === "done" ? "Ready." : "Cutting…"} <progress max="1" value=${job.state === "done" ? 1 : job.progress}></progress></p>` : null}
    <div class="actions">${job?.state === "done" ? html`<a class="button primary" href=${`/api/jobs/${job.job}/file`} download>Save the file</a>` : html`<button class="primary" disabled=${Boolean(job) && job.state !== "failed"} onClick=${start}>Export</button>`}</div>
  </${Dialog}>`;
}
