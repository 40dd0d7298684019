// Preact, htm and hooks under one import, and small functions that format values.
import { h, render, createContext, Fragment } from "../vendor/preact.mjs";
import htm from "../vendor/htm.mjs";

export * from "../vendor/hooks.mjs";
export { h, render, createContext, Fragment };
export const html = htm.bind(h);

export const clock = (seconds) => {
  const whole = Math.max(0, Math.floor(seconds + 0.05));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
};

export const fine = (seconds) => {
  const tenths = Math.round((seconds % 1) * 10) % 10;
  return `${clock(Math.floor(seconds))}.${tenths}`;
};

export const day = (iso) => {
  const date = new Date(iso);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" }).replaceAll(" ", "\u00a0");
};

export const bytes = (count) => {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = count, unit = 0;
  while (value >= 1000 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
};

export const count = (n) => Number(n).toLocaleString();
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
export const percent = (score) => `${Math.round(100 * score)} %`;
export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
export const classes = (...names) => names.filter(Boolean).join(" ");
