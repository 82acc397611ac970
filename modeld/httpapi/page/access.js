// Who asks? The key of this session: entered once, changed, forgotten.

import {key} from "./api.js";
import {byId, setText} from "./dom.js";
import {sentence} from "./words.js";

export class Access {
    #dialog = byId("key-dialog");
    #input = byId("key-input");
    #onKey;

    // `onKey` is called when another key holds from now on.
    constructor(onKey) {
        this.#onKey = onKey;
        byId("key-open").addEventListener("click", () => this.open());
        byId("key-cancel").addEventListener("click", () => this.#dialog.close());
        byId("key-forget").addEventListener("click", () => this.#use(""));
        byId("key-form").addEventListener("submit", (event) => {
            event.preventDefault();
            const entered = this.#input.value.trim();
            if (!entered) this.#tell("The field is empty.");
            else if (!/^[\x21-\x7e]+$/.test(entered)) this.#tell("A key has no spaces and no letters beyond ASCII.");
            else this.#use(entered);
        });
    }

    // `error`: why it is asked for.
    open(error = null) {
        setText(byId("key-why"), key.get() ? "This session has a key. Enter another one to change it." : "This daemon asks for a key. Without keys configured, none is needed.");
        const wrong = error && key.get() ? sentence(error.message) : "";
        if (error && !key.get()) setText(byId("key-why"), "This daemon asks for a key before it says anything.");
        this.#tell(wrong);
        byId("key-forget").hidden = !key.get();
        if (!this.#dialog.open) { // else somebody may be in the middle of a key
            this.#input.value = "";
            this.#dialog.showModal();
        }
        this.#input.focus();
    }

    render({scope, link}) {
        const words = link.phase === "refused" && link.error?.status === 401 ? "Enter key"
            : !key.get() ? "No key" : scope === "admin" ? "Key: admin" : scope === "use" ? "Key: use" : "Key";
        setText(byId("key-words"), words);
    }

    #use(value) {
        key.set(value);
        this.#input.value = "";
        this.#dialog.close();
        this.#onKey();
    }

    #tell(text) {
        const box = byId("key-error");
        box.hidden = !text;
        setText(box, text);
        this.#input.setAttribute("aria-invalid", String(Boolean(text)));
    }
}
