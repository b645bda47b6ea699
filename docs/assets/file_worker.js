// Search in pages that are opened as files: browsers start no worker there, so it runs in a hidden frame.
(() => {
  if (location.protocol !== "file:") return;
  window.Worker = class {
    constructor(url) {
      this.onmessage = this.onerror = this.onmessageerror = null;
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      (document.body ?? document.documentElement).append(this.frame);
      this.inside = this.frame.contentWindow;
      this.inside.postMessage = (data) => setTimeout(() => this.onmessage?.(new MessageEvent("message", { data })));
      const script = this.inside.document.createElement("script");
      script.src = new URL(url, location.href);
      script.onload = () => {
        const waiting = this.waiting;
        this.waiting = null;
        for (const data of waiting) this.deliver(data);
      };
      script.onerror = (error) => this.onerror?.(error);
      this.inside.document.head.append(script);
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.deliver(data);
    }
    deliver(data) {
      const frame = this.inside;
      setTimeout(() => frame.dispatchEvent(new frame.MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
})();
