// The shell of the page: the bar, the three views, messages, keys.
import { html, render, useCallback, useEffect, useLayoutEffect, useRef, useState } from "./lib.js";
import { api, events } from "./api.js";
import { go, parse, useRoute } from "./route.js";
import { SearchView } from "./search.js";
import { Library } from "./library.js";
import { Runs } from "./runs.js";
import { Dialog, Keys, Toast } from "./parts.js";

const THEMES = { auto: "Use the system's colours", light: "Light", dark: "Dark" };
const VIEWS = [["search", "Search"], ["index", "Index"], ["runs", "Runs"]];

// The search view may not be drawn yet: try for some frames.
function focusQuery(frames) {
  const box = document.getElementById("query");
  if (box) box.focus();
  else if (frames) requestAnimationFrame(() => focusQuery(frames - 1));
}

function useTheme() {
  const [theme, setTheme] = useState(localStorage.getItem("theme") || "auto");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
  }, [theme]);
  return [theme, () => setTheme({ auto: "light", light: "dark", dark: "auto" }[theme])];
}

function App() {
  const route = useRoute();
  const [index, setIndex] = useState(null);
  const [failure, setFailure] = useState(null);
  const [toast, setToast] = useState(null);
  const [keys, setKeys] = useState(false);
  const [changed, setChanged] = useState({}); // run id -> number of updates
  const [theme, turnTheme] = useTheme();
  const view = route.view || "search";

  const load = useCallback(() => api.index().then((found) => (setIndex(found), setFailure(null)), setFailure), []);
  useEffect(() => {
    load();
    return events({
      scan: (scan) => setIndex((before) => before && { ...before, scan }),
      index: (summary) => setIndex((before) => ({ ...before, ...summary })),
      run: ({ run }) => setChanged((before) => ({ ...before, [run]: (before[run] || 0) + 1 })),
    });
  }, []);

  useLayoutEffect(() => {
    const press = (event) => {
      const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
      if (event.key === "?" && !typing) setKeys(true);
      else if (event.key === "/" && !typing) {
        event.preventDefault();
        if ((parse().view || "search") !== "search") go({ view: "" });
        focusQuery(60);
      } else return;
    };
    window.addEventListener("keydown", press);
    return () => window.removeEventListener("keydown", press);
  }, []);

  const say = useCallback((text, kind = "note") => setToast({ text, kind, at: Date.now() }), []);
  const first = index && !index.ready;
  return html`
    <a class="skip" href="#main">Skip to the results</a>
    <header class="bar">
      <a class="brand" href="/" aria-label="E-ViLM, all segments" onClick=${(event) => (event.preventDefault(), window.history.pushState(null, "", "/"), window.dispatchEvent(new PopStateEvent("popstate")))}>
        <svg viewBox="0 0 32 32" width="22" height="22" aria-hidden="true"><rect width="32" height="32" rx="7" class="brand-box" /><path d="M12 9.5v13l10-6.5z" class="brand-mark" /></svg>
        <span>E-ViLM</span>
      </a>
      <nav aria-label="Views">
        ${VIEWS.map(([id, title]) => html`<a href=${id === "search" ? "/" : `?view=${id}`} aria-current=${view === id ? "page" : undefined}
          onClick=${(event) => (event.preventDefault(), go({ view: id === "search" ? "" : id, segment: "" }))}>${title}${id === "index" && index?.scan?.state === "running" ? html`<span class="pulse" title="A scan is running"></span>` : null}</a>`)}
      </nav>
      <div class="tools">
        <button class="quiet" onClick=${() => setKeys(true)} aria-label="Show the keys" title="Keys (?)">?</button>
        <button class="quiet" onClick=${turnTheme} aria-label=${`Colours: ${THEMES[theme]}. Change`} title=${THEMES[theme]}>${{ auto: "◐", light: "☀", dark: "☾" }[theme]}</button>
      </div>
    </header>
    <main id="main" tabindex="-1">
      ${failure && !index ? html`<section class="state"><h1>The server does not answer</h1><p>${failure.message}</p><button class="primary" onClick=${load}>Try again</button></section>` : null}
      ${!index && !failure ? html`<section class="state" aria-busy="true"><p>Loading the index…</p></section>` : null}
      ${index && view === "search" ? (first && !index.scan ? html`<${Library} index=${index} say=${say} first />` : html`<${SearchView} route=${route} index=${index} say=${say} />`) : null}
      ${index && view === "index" ? html`<${Library} index=${index} say=${say} />` : null}
      ${index && view === "runs" ? html`<${Runs} route=${route} changed=${changed} say=${say} />` : null}
    </main>
    ${keys ? html`<${Dialog} title="Keys" close=${() => setKeys(false)}><${Keys} /></${Dialog}>` : null}
    <${Toast} toast=${toast} close=${() => setToast(null)} />
  `;
}

render(html`<${App} />`, document.getElementById("app"));
