// Makes an element's children equal to some HTML by changing as little as possible: what has the focus keeps it,
// an opened <details> stays open, a chart (data-keep) keeps its canvas.
(() => {
  const key = (node) => (node.nodeType === 1 ? node.id || node.dataset.key || "" : "");
  const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && key(a) === key(b);

  const attributes = (old, fresh) => {
    const kept = old.nodeName === "DETAILS" || old.nodeName === "DIALOG" ? ["open"] : [];
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && !kept.includes(name)) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    if (old.nodeName === "PROGRESS") old.value = fresh.value;
  };

  const same = (old, fresh) => {
    if (old.nodeType !== 1) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    if (old.hasAttribute("aria-busy")) return; // a button whose request is under way
    attributes(old, fresh);
    if (old.hasAttribute("data-keep") || (old === document.activeElement && "value" in old)) return;
    children(old, fresh);
  };

  const children = (old, fresh) => {
    let at = old.firstChild;
    for (const wanted of [...fresh.childNodes]) {
      let found = at;
      if (!found || !alike(found, wanted)) {
        found = key(wanted) ? [...old.childNodes].find((node) => alike(node, wanted)) : null;
      }
      if (!found) {
        old.insertBefore(wanted, at);
        continue;
      }
      if (found !== at) old.insertBefore(found, at);
      else at = at.nextSibling;
      same(found, wanted);
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  };

  landreeve.morph = (element, html) => {
    const holder = document.createElement("template");
    holder.innerHTML = html;
    children(element, holder.content);
  };
})();
