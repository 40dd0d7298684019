// The open segment: the video at its place, scores over time, bounds, questions.
import { clamp, clock, day, fine, html, plural, useCallback, useEffect, useLayoutEffect, useRef, useState, bytes } from "./lib.js";
import { api, fileOf, proxyOf, still, stillAt } from "./api.js";
import { go } from "./route.js";
import { Export } from "./search.js";
import { Score, Words } from "./parts.js";

export function Viewer({ segment, hit, request, asked, step, say, index }) {
  const [about, setAbout] = useState(hit || null);
  const [video, setVideo] = useState(null);
  const [scores, setScores] = useState([]);
  const [bounds, setBounds] = useState(hit ? [hit.start, hit.end] : null);
  const [time, setTime] = useState(hit?.start || 0);
  const [source, setSource] = useState(null);
  const [wait, setWait] = useState(null); // of the proxy: {progress} or {error}
  const [exporting, setExporting] = useState(false);
  const player = useRef(null);
  const panel = useRef(null);

  useEffect(() => {
    let gone = false;
    const fail = (error) => !gone && setWait({ error: error.message });
    api.segment(segment).then(async (found) => {
      if (gone) return;
      setAbout((before) => ({ ...found, ...before }));
      setBounds((before) => before || [found.start, found.end]);
      const whole = await api.video(found.video);
      if (gone) return;
      setVideo(whole);
      if (whole.play === "direct") setSource(fileOf(found.video));
      else if (whole.play === "picture") return;
      else if (whole.play === "none") setWait({ error: "This file cannot be played in a browser." });
      else prepare(found.video);
    }).catch(fail);
    const prepare = async (id) => {
      while (!gone) {
        try {
          const state = await api.proxy(id);
          if (state.state === "done") return setSource(proxyOf(id));
          if (state.state === "failed") return setWait({ error: state.message });
          setWait({ progress: state.progress || 0 });
        } catch (error) {
          if (error.status !== 503) return fail(error);
        }
        await new Promise((resolve) => setTimeout(resolve, 500));
      }
      return undefined;
    };
    panel.current?.focus({ preventScroll: false });
    return () => (gone = true);
  }, [segment]);

  useEffect(() => {
    if (!about || !asked) return undefined;
    const control = new AbortController();
    api.scores(about.video, { text: request.text, segment: request.segment, upload: request.upload }, control.signal).then((answer) => setScores(answer.segments), () => {});
    return () => control.abort();
  }, [about?.video, request]);

  const seek = useCallback((to, play) => {
    const element = player.current;
    setTime(to);
    if (!element || !source) return;
    element.currentTime = to;
    if (play) element.play().catch(() => {});
  }, [source]);
  const ready = () => {
    if (player.current && about) {
      player.current.currentTime = about.start;
      player.current.play().catch(() => {});
    }
  };
  const fallback = () => {
    // The browser refused a file that looked playable: ask for a proxy.
    if (source && video && source === fileOf(video.video)) {
      setSource(null);
      setWait({ progress: 0 });
      const ask = () => api.proxy(video.video).then((state) => (state.state === "done" ? setSource(proxyOf(video.video)) : state.state === "failed" ? setWait({ error: state.message }) : (setWait({ progress: state.progress || 0 }), setTimeout(ask, 500))), (error) => setWait({ error: error.message }));
      ask();
    } else setWait({ error: "This video cannot be played." });
  };

  // Before the paint: a key pressed as soon as the segment is visible counts.
  useLayoutEffect(() => {
    const press = (event) => {
      if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) || document.querySelector("dialog[open]")) return;
      const element = player.current;
      const act = {
        Escape: () => go({ segment: "" }),
        j: () => step(1), k: () => step(-1),
        m: () => about && go({ like: segment, q: "", upload: "", segment: "" }),
        " ": () => element && (element.paused ? element.play().catch(() => {}) : element.pause()),
        "[": () => setBounds(([, end]) => [clamp(time, 0, end - 0.1), end]),
        "]": () => setBounds(([start]) => [start, Math.max(start + 0.1, time)]),
      }[event.key];
      if (act && !(about?.picture && " []".includes(event.key)) && !(event.key === " " && event.target.tagName === "BUTTON")) (event.preventDefault(), act());
    };
    window.addEventListener("keydown", press);
    return () => window.removeEventListener("keydown", press);
  });

  const duration = video?.duration || about?.duration || 1;
  return html`<aside class="viewer" ref=${panel} tabindex="-1" aria-label=${about ? `Open segment of ${about.name}` : "Open segment"}>
    <div class="viewer-head"><h2 title=${about?.name}>${about?.name || "…"}</h2>
      <span><button class="quiet" aria-label="Previous result" title="Previous (k)" onClick=${() => step(-1)}>‹</button><button class="quiet" aria-label="Next result" title="Next (j)" onClick=${() => step(1)}>›</button>
      <button class="quiet" aria-label="Close" title="Close (Esc)" onClick=${() => go({ segment: "" })}>✕</button></span></div>
    <div class="screen">
      ${source ? html`<video ref=${player} src=${source} controls playsinline preload="metadata" onLoadedMetadata=${ready} onTimeUpdate=${(event) => setTime(event.target.currentTime)} onError=${fallback} poster=${still(segment, undefined, 360)}></video>`
        : html`<img src=${still(segment, undefined, about?.picture ? 720 : 360)} alt=${about ? `A still of ${about.name}` : ""} />
          ${wait ? html`<p class="wait" role="status">${wait.error || html`Preparing a version that this browser can play… <progress aria-label="Preparing"></progress>`}</p>` : null}`}
    </div>
    ${about && bounds ? html`
      ${about.picture ? null : html`<${Timeline} scores=${scores} segments=${video?.segments || []} duration=${duration} time=${time} bounds=${bounds} seek=${seek} asked=${asked} current=${segment} />`}
      <div class="bounds">
        ${about.picture ? null : html`<label>Start<input type="number" step="0.1" min="0" max=${bounds[1]} value=${bounds[0].toFixed(1)} onChange=${(event) => setBounds([clamp(Number(event.target.value), 0, bounds[1] - 0.1), bounds[1]])} /></label>
        <label>End<input type="number" step="0.1" min=${bounds[0]} max=${duration} value=${bounds[1].toFixed(1)} onChange=${(event) => setBounds([bounds[0], clamp(Number(event.target.value), bounds[0] + 0.1, duration)])} /></label>
        <button onClick=${() => seek(bounds[0], true)}>Play the segment</button>`}
        <button onClick=${() => setExporting(true)}>${about.picture ? "Export…" : "Cut out…"}</button>
        <button onClick=${() => go({ like: segment, q: "", upload: "", segment: "" })}>More like this</button>
      </div>
      ${hit && asked ? html`<p class="why"><${Score} value=${hit.score} good=${hit.good} /> <${Words} hit=${hit} /></p>` : null}
      ${index.model?.asks || index.model?.chooses ? html`<${Ask} video=${about.video} bounds=${bounds} seek=${seek} free=${index.model.asks} picture=${about.picture} />` : null}
      <dl class="facts">
        <div><dt>Folder</dt><dd>${about.folder || "."}</dd></div><div><dt>Date</dt><dd>${day(about.date)}</dd></div>
        ${about.picture ? null : html`<div><dt>Length</dt><dd>${clock(duration)}</dd></div>`}
        ${video ? html`<div><dt>Picture</dt><dd>${video.width}×${video.height}, ${video.codec}</dd></div><div><dt>Size</dt><dd>${bytes(video.bytes)}</dd></div>${about.picture ? null : html`<div><dt>Segments</dt><dd>${video.segments.length}</dd></div>`}` : null}
      </dl>` : html`<p class="wait">${wait?.error || "Loading…"}</p>`}
    ${exporting ? html`<${Export} hits=${[{ ...about, from: bounds[0], to: bounds[1] }]} close=${() => setExporting(false)} say=${say} />` : null}
  </aside>`;
}

function Timeline({ scores, segments, duration, time, bounds, seek, asked, current }) {
  const bars = asked && scores.length ? scores : segments.map((one) => ({ ...one, score: null }));
  const x = (seconds) => (1000 * seconds) / duration;
  const click = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    seek(clamp(((event.clientX - box.left) / box.width) * duration, 0, duration), true);
  };
  const keys = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (by) (event.preventDefault(), seek(clamp(time + by, 0, duration)));
  };
  return html`<div class="timeline" role="slider" tabindex="0" aria-label=${asked ? "Score over the whole video; choose a time" : "Time"} aria-valuemin="0" aria-valuemax=${Math.round(duration)} aria-valuenow=${Math.round(time)} aria-valuetext=${`${clock(time)} of ${clock(duration)}`} onClick=${click} onKeyDown=${keys}>
    <svg viewBox="0 0 1000 60" preserveAspectRatio="none" aria-hidden="true">
      <line x1="0" x2="1000" y1="30" y2="30" class="half" />
      ${bars.map((one) => html`<rect x=${x(one.start)} width=${Math.max(1.5, x(one.end - one.start) - 1)} y=${one.score === null ? 48 : 60 - 60 * Math.max(0.03, one.score)} height=${one.score === null ? 12 : 60 * Math.max(0.03, one.score)} class=${one.segment === current ? "bar-now" : one.score >= 0.5 ? "bar-good" : "bar-weak"} />`)}
      <rect x=${x(bounds[0])} width=${Math.max(2, x(bounds[1] - bounds[0]))} y="0" height="60" class="range" />
      <line x1=${x(time)} x2=${x(time)} y1="0" y2="60" class="now" />
    </svg>
    <span class="ends"><span>0:00</span><span>${fine(time)}</span><span>${clock(duration)}</span></span>
  </div>`;
}

// A question, with possible answers where the model has none of its own.
function Ask({ video, bounds, seek, free, picture }) {
  const [question, setQuestion] = useState("");
  const [options, setOptions] = useState("");
  const [answer, setAnswer] = useState(null);
  const [busy, setBusy] = useState(false);
  const ask = async (event) => {
    event.preventDefault();
    if (!question.trim()) return;
    const choices = options.split(",").map((one) => one.trim()).filter(Boolean);
    if (!free && choices.length < 2) return setAnswer({ error: "Give at least two possible answers, separated by commas." });
    setBusy(true);
    try {
      setAnswer({ ...(await api.ask(video, { question: question.trim(), start: bounds[0], end: bounds[1], choices })) });
    } catch (error) {
      setAnswer({ error: error.message });
    }
    return setBusy(false);
  };
  return html`<form class="ask" onSubmit=${ask}>
    <label for="question">Ask about this ${picture ? "picture" : "segment"}</label>
    <div class="box-line"><input id="question" type="text" autocomplete="off" value=${question} placeholder=${free ? "What is the man doing?" : "What colour is it?"} onInput=${(event) => setQuestion(event.target.value)} /><button disabled=${busy}>${busy ? "…" : "Ask"}</button></div>
    ${free ? null : html`<label class="options">Possible answers, separated by commas<input type="text" autocomplete="off" value=${options} placeholder="red, green, blue" onInput=${(event) => setOptions(event.target.value)} /></label>`}
    <div aria-live="polite">${answer ? (answer.error ? html`<p class="wait">${answer.error}</p>` : html`
      <p class="answer">${answer.certain ? html`<strong>${answer.answer}</strong>` : html`<strong>Not sure</strong>, perhaps “${answer.answer}”`} <small>${Math.round(100 * answer.probability)} % sure</small></p>
      ${answer.answers?.length > 1 ? html`<ul class="others">${answer.answers.slice(1, 4).map((one) => html`<li>${one.answer} <small>${Math.round(100 * one.probability)} %</small></li>`)}</ul>` : null}
      ${answer.frames?.length && !picture ? html`<div class="frames">${answer.frames.map((frame) => html`<button class="frame" onClick=${() => seek(frame.time, true)} aria-label=${`Frame at ${clock(frame.time)}, weight ${Math.round(100 * frame.weight)} %`}><img src=${stillAt(video, frame.time)} alt="" /><span class="weight" style=${{ width: `${Math.round(100 * frame.weight)}%` }}></span></button>`)}</div>` : null}`) : null}</div>
  </form>`;
}
