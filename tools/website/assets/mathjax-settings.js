// $...$ in notebooks, \(...\) as arithmatex writes it elsewhere; nothing outside of these two is read as mathematics.
window.MathJax = {
  tex: {
    inlineMath: [["$", "$"], ["\\(", "\\)"]],
    displayMath: [["$$", "$$"], ["\\[", "\\]"]],
    processEscapes: true,
    packages: { "[-]": ["autoload", "require"] }, // the page carries all it needs
  },
  options: { ignoreHtmlClass: "md-header|md-container", processHtmlClass: "arithmatex|jp-RenderedMarkdown", enableMenu: false },
  svg: { fontCache: "global" },
}
