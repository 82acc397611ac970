// How is the daemon asked? With fetch, the key in a field of the head, and every failure an ApiError with a code and words.

import {Kept} from "./kept.js";

const KEY = "modeld.key";
const kept = new Kept(() => sessionStorage);
let onRefused = () => {};

export class ApiError extends Error {
    constructor(status, code, message, retryAfterS = null) {
        super(message);
        this.status = status;
        this.code = code;
        this.retryAfterS = retryAfterS;
    }
}

// Kept as long as this tab is, and read by no other site. Never part of an address.
export const key = {
    get: () => kept.get(KEY),
    set: (value) => kept.set(KEY, value),
};

// Whoever wants to know that a key is missing, wrong, or not enough.
export function whenRefused(callback) {
    onRefused = callback;
}

// Relative to where the page lies: behind a proxy that is not the root.
export const address = (path) => new URL(path.replace(/^\//, ""), document.baseURI).href;

// The response, if its status is 2xx; else throws ApiError. The mode of fetch stays "cors": with the page's
// Referrer-Policy, any other one sends `Origin: null` with a POST, which the daemon refuses.
export async function ask(method, path, {body, headers = {}, signal} = {}) {
    const fields = {...headers};
    // Not Authorization: a proxy in front may want that for itself.
    if (key.get()) fields["X-Api-Key"] = key.get();
    if (body !== undefined) fields["Content-Type"] = "application/json";
    let response;
    try {
        response = await fetch(address(path), {
            method, signal, headers: fields, body: body === undefined ? undefined : JSON.stringify(body),
            credentials: "same-origin", cache: "no-store", redirect: "error",
        });
    } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError(0, "unreachable", "the daemon cannot be reached");
    }
    if (response.ok) return response;
    throw await failure(response);
}

export async function askJson(method, path, options) {
    return (await ask(method, path, options)).json();
}

async function failure(response) {
    const text = await response.text().catch(() => "");
    let said = null;
    try {
        said = JSON.parse(text).error;
    } catch {
        // not the daemon's words: a proxy's
    }
    const message = said?.message ?? `${response.status} ${response.statusText}`.trim();
    const code = said?.code ?? (response.status === 401 ? "invalid_api_key" : "no_answer");
    const error = new ApiError(response.status, String(code), String(message), Number(response.headers.get("retry-after")) || null);
    if (["invalid_api_key", "permission_denied"].includes(error.code)) onRefused(error);
    return error;
}
