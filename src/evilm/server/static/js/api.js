// The server's HTTP interface. Every function returns a promise of parsed JSON and throws an ApiError.
export class ApiError extends Error {
  constructor(status, code, message, retry) {
    super(message);
    Object.assign(this, { status, code, retry });
  }
}

async function call(method, path, body, options = {}) {
  const raw = body instanceof Blob;
  const headers = { ...options.headers };
  if (body !== undefined && !raw) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined || raw ? body : JSON.stringify(body), signal: options.signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "offline", "The server does not answer. Start it again with `evilm serve`.");
  }
  const json = (answer.headers.get("Content-Type") || "").includes("json");
  if (!answer.ok) {
    const problem = json ? (await answer.json()).error || {} : {};
    throw new ApiError(answer.status, problem.code || "error", problem.message || `The server answered ${answer.status}.`, answer.headers.get("Retry-After"));
  }
  return json ? { status: answer.status, ...(await answer.json()) } : answer;
}

const query = (values) => {
  const present = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return present.length ? `?${new URLSearchParams(present)}` : "";
};

export const api = {
  index: () => call("GET", "/api/index"),
  search: (request, signal) => call("POST", "/api/search", request, { signal }),
  upload: (file) => call("POST", "/api/uploads", file, { headers: { "Content-Type": file.type || "application/octet-stream", "X-Filename": encodeURIComponent(file.name || "pasted") } }),
  segment: (id) => call("GET", `/api/segments/${id}`),
  video: (id) => call("GET", `/api/videos/${id}`),
  scores: (id, asked, signal) => call("GET", `/api/videos/${id}/scores${query(asked)}`, undefined, { signal }),
  ask: (id, request) => call("POST", `/api/videos/${id}/ask`, request),
  proxy: (id) => call("GET", `/api/videos/${id}/proxy?state=1`),
  exports: (request) => call("POST", "/api/exports", request),
  job: (id) => call("GET", `/api/jobs/${id}`),
  unreadable: (cursor) => call("GET", `/api/unreadable${query({ cursor })}`),
  folders: (parent) => call("GET", `/api/folders${query({ parent })}`),
  scan: (request) => call("POST", "/api/scan", request),
  stopScan: () => call("DELETE", "/api/scan"),
  runs: () => call("GET", "/api/runs"),
  run: (id) => call("GET", `/api/runs/${id}`),
  saved: () => call("GET", "/api/saved"),
  save: (list) => call("PUT", "/api/saved", list),
};

export const still = (segment, n, height = 180) => `/api/thumbnails/${segment}?height=${height}${n === undefined ? "" : `&n=${n}`}`;
export const stillAt = (video, time, height = 90) => `/api/videos/${video}/still?time=${time.toFixed(2)}&height=${height}`;
export const fileOf = (video) => `/api/videos/${video}/file`;
export const proxyOf = (video) => `/api/videos/${video}/proxy`;

// One connection for all server-sent events; listeners are called with parsed data.
export function events(listeners) {
  const source = new EventSource("/api/events");
  for (const [name, listener] of Object.entries(listeners))
    source.addEventListener(name, (event) => listener(JSON.parse(event.data)));
  return () => source.close();
}

export async function download(answer, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
