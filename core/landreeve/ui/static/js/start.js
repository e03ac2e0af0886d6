// One name for everything the page's own scripts share.
const landreeve = { words: document.documentElement.dataset };
