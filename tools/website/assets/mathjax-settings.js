// $...$ in notebooks and their contents, \(...\) as arithmatex writes it; nothing else is read as mathematics.
window.MathJax = {
  tex: {
    inlineMath: [["$", "$"], ["\\(", "\\)"]],
    displayMath: [["$$", "$$"], ["\\[", "\\]"]],
    processEscapes: true,
    packages: { "[-]": ["autoload", "require"] }, // the page carries all it needs
  },
  options: { ignoreHtmlClass: "md-header|md-container", processHtmlClass: "arithmatex|jp-RenderedMarkdown|md-nav__item", enableMenu: false },
  svg: { fontCache: "global" },
}
