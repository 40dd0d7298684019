// Parts that several views use: dialog, message, score bar, the list of keys.
import { html, percent, useEffect, useRef } from "./lib.js";

export function Dialog({ title, close, children }) {
  const element = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    element.current.showModal();
    return () => before?.focus?.();
  }, []);
  return html`<dialog ref=${element} aria-labelledby="dialog-title" onClose=${close}
      onClick=${(event) => event.target === element.current && element.current.close()}>
    <div class="dialog-head"><h2 id="dialog-title">${title}</h2><button class="quiet" aria-label="Close" onClick=${() => element.current.close()}>✕</button></div>
    ${children}
  </dialog>`;
}

export function Toast({ toast, close }) {
  useEffect(() => {
    if (!toast) return undefined;
    const timer = setTimeout(close, toast.kind === "error" ? 9000 : 5000);
    return () => clearTimeout(timer);
  }, [toast?.at]);
  return html`<div class="toasts" role="status" aria-live="polite">${toast ? html`<div class=${`toast ${toast.kind}`}><span>${toast.text}</span><button class="quiet" aria-label="Close the message" onClick=${close}>✕</button></div>` : null}</div>`;
}

export function Score({ value, good }) {
  return html`<span class=${good ? "score" : "score weak"} role="img" aria-label=${`Score ${percent(value)}`}>
    <span class="score-track"><span class="score-fill" style=${{ width: `${Math.max(2, 100 * value)}%` }}></span></span><span class="score-number">${value.toFixed(2)}</span></span>`;
}

// Why a hit was found: the words of the query that it matches, then what the model sees in it.
export function Words({ hit }) {
  const words = [...new Set([...hit.words, ...hit.why])].slice(0, 4);
  return words.length ? html`<span class="words">${words.map((word) => html`<span>${word}</span>`)}</span>` : null;
}

const KEYS = [
  ["/", "go to the search box"],
  ["←  ↑  ↓  →", "move among the results"],
  ["Enter", "open the result in focus"],
  ["x", "select the result in focus"],
  ["Space", "play or pause"],
  ["j  k", "next and previous result while one is open"],
  ["[  ]", "set start and end of the segment to the current time"],
  ["m", "more like this"],
  ["Esc", "close"],
  ["?", "show this list"],
];

export const Keys = () => html`<dl class="keys">${KEYS.map(([key, text]) => html`<div><dt>${key.split("  ").map((one) => html`<kbd>${one}</kbd> `)}</dt><dd>${text}</dd></div>`)}</dl>`;
