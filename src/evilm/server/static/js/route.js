// What the page shows lives in the address, so that every search and every open segment can be linked to and gone back to.
import { useLayoutEffect, useState } from "./lib.js";

const KEYS = ["view", "q", "like", "upload", "folder", "after", "until", "min", "max", "name", "sort", "segment", "run", "compare"];

export function parse(address = window.location.search) {
  const values = new URLSearchParams(address);
  return Object.fromEntries(KEYS.filter((key) => values.get(key)).map((key) => [key, values.get(key)]));
}

const listeners = new Set();
const tell = () => listeners.forEach((listener) => listener(parse()));
window.addEventListener("popstate", tell);

// Changes parts of the address; a value that is empty goes. `replace` keeps it out of the history.
export function go(changes, { replace = false } = {}) {
  const values = { ...parse(), ...changes };
  const kept = Object.entries(values).filter(([key, value]) => KEYS.includes(key) && value !== undefined && value !== null && value !== "");
  const address = kept.length ? `?${new URLSearchParams(kept)}` : window.location.pathname;
  window.history[replace ? "replaceState" : "pushState"](null, "", address);
  tell();
}

export function useRoute() {
  const [route, setRoute] = useState(parse());
  useLayoutEffect(() => {
    listeners.add(setRoute);
    return () => listeners.delete(setRoute);
  }, []);
  return route;
}
