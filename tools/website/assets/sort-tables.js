// A click on a heading sorts its table: numbers by value, anything else by letters, rows without a value last.
document.querySelectorAll(".md-content table").forEach(table => {
  const body = table.tBodies[0]
  const headings = table.tHead ? [...table.tHead.rows[0].cells] : []
  const rows = body ? [...body.rows] : []
  if (rows.length < 3 || rows.some(row => row.cells.length !== headings.length)) return
  const value = text => {
    const match = text.trim().replace(/,(?=\d{3})/g, "").replace("−", "-").match(/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?/i)
    return match ? Number(match[0]) : NaN
  }
  headings.forEach((heading, column) => {
    let descending = false
    const sort = () => {
      descending = !descending
      const text = row => row.cells[column].textContent.trim()
      const given = rows.filter(row => !["", "–", "-", "NaN"].includes(text(row)))
      const numeric = given.every(row => !Number.isNaN(value(text(row))))
      const compare = numeric ? (a, b) => value(text(a)) - value(text(b)) : (a, b) => text(a).localeCompare(text(b))
      given.sort((a, b) => (descending === numeric ? -1 : 1) * compare(a, b))
      body.append(...given, ...rows.filter(row => !given.includes(row)))
      headings.forEach(other => other.removeAttribute("aria-sort"))
      heading.setAttribute("aria-sort", descending === numeric ? "descending" : "ascending")
    }
    heading.classList.add("sortable")
    heading.tabIndex = 0
    heading.addEventListener("click", sort)
    heading.addEventListener("keydown", event => event.key === "Enter" && sort())
  })
})
