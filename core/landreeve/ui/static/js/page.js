// Small manners of a page: dialogs, copying, filtering while typing.
(() => {
  document.addEventListener("click", async (event) => {
    const opener = event.target.closest("[data-open]");
    if (opener) document.getElementById(opener.dataset.open).showModal();
    const closer = event.target.closest("[data-close]");
    if (closer) closer.closest("dialog").close();
    const copier = event.target.closest("[data-copy]");
    if (copier) copy(copier.parentElement.querySelector("pre"));
  });

  const copy = async (source) => {
    getSelection().selectAllChildren(source);
    try {
      await navigator.clipboard.writeText(source.textContent);
      landreeve.say(landreeve.words.copied);
    } catch {
      document.execCommand("copy"); // plain HTTP on a LAN has no clipboard API; the text stays selected
    }
  };

  let typing = 0;
  document.addEventListener("input", (event) => {
    const form = event.target.closest("form[data-filter]");
    if (!form) return;
    clearTimeout(typing);
    typing = setTimeout(() => {
      const query = new URLSearchParams(new FormData(form));
      for (const [name, value] of [...query]) if (!value) query.delete(name);
      history.replaceState(null, "", location.pathname + (query.size ? "?" + query : ""));
      landreeve.reconnect();
    }, 220);
  });
  document.addEventListener("change", (event) => {
    if (event.target.closest("form[data-auto]")) event.target.form.requestSubmit();
  });

  landreeve.charts();
})();
