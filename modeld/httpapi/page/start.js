// What if the page does not arrive whole? It says so and asks for itself again: the daemon may be starting, or a proxy has lost it.
// No module, so that it runs where one of them is missing.

addEventListener("error", ({target}) => {
    if (!(target instanceof HTMLScriptElement || target instanceof HTMLLinkElement)) return;
    const words = document.getElementById("link-words");
    if (words) words.textContent = "The page did not arrive whole. Trying again";
    setTimeout(() => location.reload(), 2000);
}, true);
