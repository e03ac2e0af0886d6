// Makes an element's children equal to some HTML by changing as little as possible: what has the focus keeps it,
// an opened <details> stays open, a chart (data-keep) keeps its canvas.
(() => {
  // A button is what it does: "Approve" never turns into "Pause" under somebody's finger.
  const key = (node) => (node.nodeType === 1 ? node.id || node.dataset.key || node.dataset.api || "" : "");
  const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && key(a) === key(b);

  const attributes = (old, fresh) => {
    const kept = ["aria-busy", ...(old.nodeName === "DETAILS" || old.nodeName === "DIALOG" ? ["open"] : [])];
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
    attributes(old, fresh);
    if (old.hasAttribute("data-keep") || (old === document.activeElement && "value" in old)) return;
    children(old, fresh);
  };

  // Moving a node takes its focus away, so what is gone is removed before what stays is looked for.
  const obsolete = (node, wanted, keys) =>
    (key(node) && !keys.has(key(node))) || (node.nodeType === 3 && !node.nodeValue.trim() && wanted.nodeType !== 3);

  const match = (from, wanted) => {
    for (let node = from; node; node = node.nextSibling) if (alike(node, wanted)) return node;
    return null;
  };

  const children = (old, fresh) => {
    const keys = new Set([...fresh.childNodes].map(key));
    let at = old.firstChild;
    const drop = () => {
      const next = at.nextSibling;
      at.remove();
      at = next;
    };
    for (const wanted of [...fresh.childNodes]) {
      while (at && obsolete(at, wanted, keys)) drop();
      const found = match(at, wanted);
      if (!found) {
        old.insertBefore(wanted, at);
        continue;
      }
      if (found === at) at = at.nextSibling;
      else old.insertBefore(found, at);
      same(found, wanted);
    }
    while (at) drop();
  };

  landreeve.morph = (element, html) => {
    const holder = document.createElement("template");
    holder.innerHTML = html;
    children(element, holder.content);
  };
})();
