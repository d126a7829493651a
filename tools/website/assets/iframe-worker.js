// A page opened from a disk may not start a worker, and search runs in one. There, a hidden frame does the same work.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = "<!doctype html>"
      this.frame = frame
      this.inside = new Promise(ready => {
        frame.onload = () => {
          const inside = frame.contentWindow
          const load = one => new Promise((done, failed) => {
            const script = inside.document.createElement("script")
            Object.assign(script, { src: one, onload: done, onerror: failed })
            inside.document.body.append(script)
          })
          inside.importScripts = (...all) => all.reduce((before, one) => before.then(() => load(one)), Promise.resolve())
          inside.postMessage = data => {
            const event = new MessageEvent("message", { data: structuredClone(data) })
            this.dispatchEvent(event)
            if (this.onmessage) this.onmessage(event)
          }
          load(new URL(address, location.href).href).then(() => ready(inside))
        }
      })
      document.body.append(frame)
    }
    postMessage(data) {
      this.inside.then(inside => inside.dispatchEvent(new inside.MessageEvent("message", { data: structuredClone(data) })))
    }
    terminate() {
      this.frame.remove()
    }
  }
}
