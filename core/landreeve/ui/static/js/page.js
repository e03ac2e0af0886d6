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

  // The form stays as it is, with what has the focus and what is unfolded; only what follows from it is drawn anew.
  const ask = (form) => {
    const query = new URLSearchParams(new FormData(form));
    for (const [name, value] of [...query]) if (!value) query.delete(name);
    const address = location.pathname + (query.size ? "?" + query : "");
    if (form.dataset.asked === address) return;
    form.dataset.asked = address;
    follows(true);
    history.replaceState(null, "", address);
    landreeve.reconnect();
  };
  // Until the answer is there, what was drawn before does nothing: see data-follows.
  const follows = (stale) => {
    for (const button of document.querySelectorAll("[data-follows] button")) button.disabled = stale;
  };

  let typing = 0;
  document.addEventListener("input", (event) => {
    const form = event.target.closest("form[data-filter], form[data-auto]");
    if (!form) return;
    clearTimeout(typing);
    typing = setTimeout(() => { if (form.checkValidity()) ask(form); }, 220);
  });
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-auto]");
    if (form && form.reportValidity()) ask(form);
  });
  document.addEventListener("submit", (event) => {
    if (!event.target.closest("form[data-auto]")) return;
    event.preventDefault();
    ask(event.target);
  });
  document.addEventListener("landreeve:patched", () => follows(false));

  landreeve.charts();
})();
