// What does this browser keep for the page? Where it is told to keep nothing, the page itself does, as long as it is open.

export class Kept {
    #storage = null;
    #here = new Map();

    // `storage`: a function that gives one; it throws where the browser does not allow any.
    constructor(storage) {
        try {
            this.#storage = storage();
        } catch {
            // as said above
        }
    }

    get(name) {
        return (this.#storage ? this.#storage.getItem(name) : this.#here.get(name)) ?? "";
    }

    set(name, value) {
        if (!this.#storage) this.#here.set(name, value);
        else if (value) this.#storage.setItem(name, value);
        else this.#storage.removeItem(name);
    }
}
