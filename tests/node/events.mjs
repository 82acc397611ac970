// The EventSource of npm: `node events.mjs URL NAME,NAME,...` prints a line of JSON for each event, [id, name], and for each lost
// connection, [null, "error"]. It runs until it is ended.

import { EventSource } from "eventsource";

const [url, names] = process.argv.slice(2);
const source = new EventSource(url);
for (const name of names.split(",")) {
  source.addEventListener(name, (event) => console.log(JSON.stringify([event.lastEventId, name])));
}
source.onerror = () => console.log(JSON.stringify([null, "error"]));
