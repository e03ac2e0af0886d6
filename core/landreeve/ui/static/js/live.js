// One event stream per page, only while the page is visible: HTTP/1.1 allows six connections per origin.
(() => {
  let source = null;

  const show = (state) => {
    for (const mark of document.querySelectorAll("[data-live-mark]")) {
      mark.dataset.state = state;
      mark.textContent = landreeve.words[state] || state;
    }
  };

  const patch = (event) => {
    for (const [id, html] of Object.entries(JSON.parse(event.data))) {
      const element = document.getElementById(id);
      if (element) landreeve.morph(element, html);
    }
    show("live");
    document.dispatchEvent(new Event("landreeve:patched"));
  };

  const open = () => {
    if (source || !document.body.dataset.live || document.hidden) return;
    source = new EventSource("/live" + location.pathname + location.search);
    source.addEventListener("patch", patch);
    source.addEventListener("open", () => show("live"));
    source.addEventListener("problem", (event) => {
      close();
      if (JSON.parse(event.data).status === 401) location.reload();
      else { show("lost"); setTimeout(open, 3000); }
    });
    source.addEventListener("error", () => {
      show("lost");
      if (source && source.readyState === EventSource.CLOSED) { close(); setTimeout(open, 5000); }
    });
  };

  const close = () => {
    if (source) source.close();
    source = null;
  };

  landreeve.reconnect = () => { close(); open(); };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
})();
